"""Clients that are slow on purpose, and ten thousand that do nothing: nobody else is kept waiting."""

from __future__ import annotations

import csv
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.proxy.harness import CHAT, HOST, Stack, Wire, chat, request
from tests.support.polling import until

MakeStack = Callable[..., Stack]
IDLE = 10_000
# Seconds in which a good client must be served, whatever others do.
SOON = 1.0
# Connections of an attack, how many of them begin a second, and how many seconds it lasts.
ATTACKERS, RATE, LASTS = 1000, 250, 40
READERS = "answers read byte by byte"
# What slowhttptest is told for each kind of attack; it sends no key, so the door asks for none.
ATTACKS = {
    "heads that never end": ["-H", "-i", "5", "-t", "GET"],
    "bodies that never end": ["-B", "-i", "5", "-s", "8192", "-t", "POST"],
    READERS: ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}
# An open route whose answer is longer than such a reader takes at once.
LONG_ANSWER = "/metrics"

needs_slowhttptest = pytest.mark.skipif(
    shutil.which("slowhttptest") is None,
    reason="slowhttptest is not installed (apt-get install slowhttptest)",
)


@contextmanager
def good_client(stack: Stack) -> Iterator[list[float]]:
    """Ask again and again, on a new connection each time, and note how long each answer took (seconds)."""
    took: list[float] = []
    over = threading.Event()

    def ask_on() -> None:
        while not over.wait(0.1):
            begun = time.monotonic()
            assert stack.ask(request(body=chat(tokens=1))).status == 200
            took.append(time.monotonic() - begun)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def memory(stack: Stack) -> float:
    """Give the memory (PSS, MB) of all processes of the proxy."""
    processes = [psutil.Process(pid) for pid in (stack.proxy.pid, *stack.processes())]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


@pytest.mark.timeout(300)
def test_ten_thousand_idle_connections_keep_nobody_waiting_and_leave_nothing(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1).start()
    before = memory(stack)
    first = with_idle_connections(stack) - before
    assert first < 20e-3 * IDLE, "20 kB a connection at most"
    # What Python and malloc keep of them is used again: the same once more takes no more.
    assert with_idle_connections(stack) - before < 1.1 * first
    stack.check_log()


def with_idle_connections(stack: Stack) -> float:
    """Open them, be served beside them, and give the memory of the proxy meanwhile (MB)."""
    with ExitStack() as open_wires:
        for number in range(IDLE):
            wire = open_wires.enter_context(stack.wire())
            # Half of them have had an answer, and keep their connection.
            if number % 2:
                assert wire.send(request("GET", "/livez")).answer().status == 200
        begun = time.monotonic()
        assert stack.ask(request(body=chat(tokens=1))).status == 200
        assert stack.ask(request("GET", "/health")).status == 200
        assert time.monotonic() - begun < SOON
        return memory(stack)


@needs_slowhttptest
@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS)
def test_slow_clients_keep_nobody_waiting_and_are_let_go(
    new_stack: MakeStack, tmp_path: Path, attack: str
) -> None:
    stack = new_stack(workers=1, api_keys=(), open_routes=(LONG_ANSWER,)).start()
    before = memory(stack)
    url = f"http://{HOST}:{stack.port}{LONG_ANSWER if attack == READERS else CHAT}"
    counts = {"-c": ATTACKERS, "-r": RATE, "-l": LASTS, "-p": 3, "-o": tmp_path / "seen"}
    words = [str(word) for pair in counts.items() for word in pair]
    argv = ["slowhttptest", *ATTACKS[attack], "-u", url, "-g", *words]
    with good_client(stack) as took:
        done = subprocess.run(
            argv, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=LASTS + 60
        )
    assert len(took) > 100, "it was served all the time"
    assert max(took) < SOON
    rows = list(csv.DictReader((tmp_path / "seen.csv").read_text().splitlines()))
    assert max(int(row["Connected"]) for row in rows) > ATTACKERS / 2, "there was an attack"
    if attack != READERS:
        assert "No open connections left" in done.stdout, "the door ends what does not come to an end"
    assert memory(stack) - before < 60
    until(lambda: stack.in_flight() == [0], 5, "no worker is kept for them")
    stack.check_log()


def test_a_client_that_never_reads_costs_bounded_memory_and_lets_others_be(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1).start()
    before = memory(stack)
    with ExitStack() as open_wires, good_client(stack) as took:
        for _ in range(50):
            wire: Wire = open_wires.enter_context(stack.wire(receive_buffer=4096))
            wire.send(request(body=chat(stream=True, tokens=200, size=20_000)))
        until(lambda: sum(stack.in_flight()) >= 50, 10, "all streams have begun")
        held = len(took)
        until(lambda: len(took) > held + 20, 30, "others are served beside them")
        # 200 events of 20 kB are 4 MB each; what is not read stays in the kernel and at the worker.
        assert memory(stack) - before < 50
    assert max(took) < SOON
    until(lambda: stack.in_flight() == [0], 5, "they are gone, and so is what they had asked for")
    stack.check_log()
