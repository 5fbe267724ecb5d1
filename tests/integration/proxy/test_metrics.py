"""The metrics of the admin door: one exposition that is right over all processes, whatever workers do."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.proxy.harness import CHAT, ScriptedWorker, Stack, chat, get_metrics, request
from tests.support.polling import until
from vllm_stack.layout import failure_record, lives_record
from vllm_stack.records.lives import count_failure, count_start
from vllm_stack.worker.failure import new_failure, record_failure

MakeStack = Callable[..., Stack]
MODEL = 'odd "model" {of\n\\all}, worker="x"'
# Seconds: a worker that hangs costs two, and this machine may be busy.
PATIENCE = 10.0


class Told:
    """What one scrape has brought; every family is there once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        names = [family.name for family in self.families]
        assert len(names) == len(set(names)), names

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value

    def total(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))


def scrape(stack: Stack) -> Told:
    return Told(get_metrics(stack.admin_port))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    place = tmp_path_factory.mktemp("metrics")
    with Stack(place, workers=2, proxy_processes=2, policy="round-robin") as stack:
        yield stack.serve_models(([MODEL], [0, 1])).start()


@contextmanager
def halted(stack: Stack, index: int) -> Iterator[None]:
    """A worker whose server is stopped in the middle of whatever it does."""
    process = stack.workers[index].process
    assert process
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_counters_are_the_requests_sent_and_a_killed_process_takes_none_along(stack: Stack) -> None:
    good = {"route": CHAT, "method": "POST", "code": "200"}
    before = scrape(stack)

    def since(name: str, **labels: str) -> float:
        return scrape(stack).total(name, **labels) - before.total(name, **labels)

    def send(count: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            sent = pool.map(lambda n: stack.ask(request(body=chat(n % 2 == 0, tokens=2))), range(count))
        assert [answer.status for answer in sent] == [200] * count

    send(20)
    assert stack.ask(request("POST", "/v1/../x", chat())).status == 400
    assert stack.ask(request("GET", "/v1/models", key="wrong")).status == 401
    # A process counts when an answer has ended, which its client may know a moment earlier.
    until(lambda: since("vllm_stack_requests_total") == 22, 5, "all are counted")
    (first, *_) = stack.processes()
    os.kill(first, signal.SIGKILL)
    until(
        lambda: first not in stack.processes() and len(stack.processes()) == 2, 10, "there is another process"
    )
    stack.wait_ready()
    send(20)
    until(lambda: since("vllm_stack_requests_total", **good) == 40, 5, "all are counted")
    told = scrape(stack)
    assert since("vllm_stack_requests_total", code="401", route="/v1/models") == 1
    assert since("vllm_stack_requests_total", code="400") == 1
    assert since("vllm_stack_refused_total") == 2
    assert since("vllm_stack_first_byte_seconds_count") == since("vllm_stack_duration_seconds_count") == 40
    assert since("vllm_stack_body_bytes_total", direction="in") > 40 * 50
    assert since("vllm_stack_key_requests_total", key="key-1") >= 40
    assert told.total("vllm_stack_in_flight") == told.value("vllm_stack_waiting") == 0
    for worker in stack.workers:
        assert (
            told.value("vllm_stack_first_byte_seconds_bucket", worker=f"worker-{worker.index}", le="+Inf") > 0
        )


def test_every_worker_s_own_metrics_are_there_under_its_labels(stack: Stack) -> None:
    until(lambda: scrape(stack).total("vllm_stack_open_processes") == 4, 10, "all see all")
    generated = "vllm:generation_tokens_total"
    at_workers = sum(Told(get_metrics(worker.where)).total(generated) for worker in stack.workers)

    def of_now() -> Told | None:
        told = scrape(stack)
        return told if told.total(generated) == at_workers else None

    # What a worker said holds for a second, in each process of the proxy for itself.
    told = until(of_now, 5, "what they say now is told")
    for worker in stack.workers:
        place = {"worker": f"worker-{worker.index}", "gpu": "", "model": MODEL}
        assert told.value("vllm_stack_worker_ready", **place) == 1
        assert told.value("vllm_stack_worker_scrape_up", **place) == 1
        assert told.value("vllm_stack_worker_state", state="ready", **place) == 1
        assert told.value("vllm_stack_open_processes", **place) == 2
        own = Told(get_metrics(worker.where))
        for family in own.families:
            for sample in family.samples:
                told.value(sample.name, **{**sample.labels, **place})
        assert own.total(generated) == told.value(generated, **place)
    assert told.value("vllm_stack_build_info") == 1
    assert told.value("vllm_stack_proxy_processes") == 2


def test_a_worker_that_hangs_costs_two_seconds_and_says_so_whoever_asks(stack: Stack) -> None:
    until(lambda: scrape(stack).total("vllm_stack_worker_scrape_up") == 2, 5, "both tell")
    with halted(stack, 0), ThreadPoolExecutor(4) as pool:
        # What it said before holds for a second.
        until(lambda: scrape(stack).total("vllm_stack_worker_scrape_up") == 1, 10, "one does not tell")
        begun = time.monotonic()
        scrapes = [pool.submit(scrape, stack) for _ in range(4)]
        assert stack.ask(request("GET", "/livez")).status == 200
        assert not all(one.done() for one in scrapes), "nobody else waits for it"
        every = [one.result() for one in scrapes]
        assert time.monotonic() - begun < PATIENCE
    for told in every:
        assert told.value("vllm_stack_worker_scrape_up", worker="worker-0") == 0
        assert told.value("vllm_stack_worker_scrape_up", worker="worker-1") == 1
        assert told.values("vllm:num_requests_running", worker="worker-0") == []
        assert len(told.values("vllm:num_requests_running", worker="worker-1")) == 1
    until(lambda: scrape(stack).total("vllm_stack_worker_scrape_up") == 2, 10, "it tells again")
    stack.wait_ready()


def test_the_records_of_wrappers_are_told_and_survive_all_but_damage(stack: Stack) -> None:
    state = stack.out / "run/state"
    for _ in range(3):
        count_start(lives_record(state, "worker-1"))
    count_failure(lives_record(state, "worker-1"))
    lives_record(state, "worker-0").write_text("{")
    failure = new_failure(-9, 12.0, "ready")
    odd = 'the kernel "ended"\nit: {out of memory}\x1b[31m'
    record_failure(failure_record(state, "worker-1"), type(failure)(**{**_fields(failure), "cause": odd}))
    told = scrape(stack)
    starts, failures = "vllm_stack_worker_starts_total", "vllm_stack_worker_failures_total"
    assert (told.value(starts, worker="worker-1"), told.value(failures, worker="worker-1")) == (3, 1)
    assert (told.value(starts, worker="worker-0"), told.value(failures, worker="worker-0")) == (0, 0)
    at = told.value("vllm_stack_worker_last_failure_timestamp_seconds")
    assert abs(at - time.time()) < 60
    shown = 'the kernel "ended"\\nit: {out of memory}'
    last = {"worker": "worker-1", "how": "was killed by SIGKILL", "cause": shown}
    assert told.value("vllm_stack_worker_last_failure_info", **last) == 1
    record_failure(failure_record(state, "worker-1"), failure)
    assert scrape(stack).value("vllm_stack_worker_last_failure_info", cause="not known") == 1


def _fields(failure: object) -> dict[str, object]:
    return {name: getattr(failure, name) for name in failure.__dataclass_fields__}  # type: ignore[attr-defined]


def test_reloads_are_counted_and_scrapes_go_on_through_them(stack: Stack) -> None:
    before = scrape(stack)
    counted = before.total("vllm_stack_requests_total", code="200")
    assert stack.ask(request(body=chat(tokens=1))).status == 200
    reloads = before.value("vllm_stack_reloads_total")
    seen = []
    for number in (1, 2):
        old = set(stack.processes())
        stack.proxy.send_signal(signal.SIGHUP)

        def renewed(old: set[int] = old) -> bool:
            told = scrape(stack)
            seen.append(told.value("vllm_stack_reloads_total"))
            return not old & set(stack.processes()) and len(stack.processes()) == 2

        until(renewed, 15, f"reload {number} is over")
    stack.wait_ready()
    told = scrape(stack)
    assert seen == sorted(seen), "a counter never falls"
    assert told.value("vllm_stack_reloads_total") == reloads + 2
    assert told.total("vllm_stack_requests_total", code="200") == counted + 1
    assert told.value("vllm_stack_proxy_processes") == 2


@pytest.mark.parametrize(
    ("body", "promised"),
    [(b"<html></html>\n", 14), (b"a 1\nb 2\n", 90), (b"a \xff\n", 4)],
    ids=["no exposition", "broken off", "no text"],
)
def test_what_is_no_metrics_is_left_out_and_nothing_else(
    scripted: tuple[Stack, list[ScriptedWorker]], body: bytes, promised: int
) -> None:
    stack, (bad, good) = scripted
    # Both are asked at once, so the good one tells which of the answers to the other one was seen.
    text = b"# TYPE mark gauge\nmark %d\n" % promised
    bad.play = answering(body, promised)
    good.play = answering(text, len(text))
    until(lambda: scrape(stack).values("mark") == [promised], 5, "they were asked")
    told = scrape(stack)
    assert told.values("vllm_stack_worker_scrape_up") == [0, 1]
    assert not told.values("a")
    told.value("mark", worker="worker-1")


def answering(body: bytes, promised: int) -> Callable[[socket.socket, bytes], bool]:
    """Answer with this, and hang up."""
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % promised

    def play(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(head + body)
        return False

    return play


def test_what_is_wrong_with_a_worker_s_metrics_is_logged_once(
    scripted: tuple[Stack, list[ScriptedWorker]],
) -> None:
    stack, (bad, _) = scripted
    bad.play = answering(b"oh dear\n", 8)
    said = "The metrics of worker-0 are left out: 'oh dear' is no sample"

    def asked_again() -> bool:
        scrape(stack)
        return len(bad.requests) >= 2

    until(asked_again, 10, "it was asked again")
    assert stack.log.read_text().count(said) == 1


@pytest.mark.parametrize(
    "flood",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"1\r\na\r\n"],
    ids=["interim answers", "chunks of a byte"],
)
def test_a_worker_that_never_comes_to_an_end_keeps_nobody_from_being_served(
    scripted: tuple[Stack, list[ScriptedWorker]], flood: bytes
) -> None:
    stack, (bad, _) = scripted
    begun = threading.Event()

    def play(sock: socket.socket, data: bytes) -> bool:
        if flood.startswith(b"1"):
            sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            begun.set()
            sock.sendall(flood * 5000)
        return False

    bad.play = play

    def scrape_it() -> Told:
        while True:  # it may have been asked just before, and then is not asked again at once
            told = scrape(stack)
            if begun.is_set():
                return told

    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(scrape_it)
        assert begun.wait(5)
        since = time.monotonic()
        assert stack.ask(request("GET", "/livez")).status == 200
        assert told.result(PATIENCE).value("vllm_stack_worker_scrape_up", worker="worker-0") == 0
        assert time.monotonic() - since < PATIENCE - 1, "nobody waited for its end"


def test_a_chunk_of_a_negative_size_is_no_bug_of_ours(
    scripted: tuple[Stack, list[ScriptedWorker]],
) -> None:
    stack, (bad, _) = scripted
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"

    def play(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(head + b"-5\r\na 1\n\r\n")
        return False

    bad.play = play

    def asked() -> bool:
        told = scrape(stack)
        return bool(bad.requests) and told.values("vllm_stack_worker_scrape_up")[0] == 0

    until(asked, 10, "it was asked")
    stack.check_log()
