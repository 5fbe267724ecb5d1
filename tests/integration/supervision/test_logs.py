"""`vllm-stack logs` on a whole stack: one stream of all programs, through restarts and rotations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import BIN, Stack, StackFactory
from tests.support.polling import until


class Reader:
    """A `vllm-stack logs --follow` that runs, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], shown: Path) -> None:
        self.process = process
        self._shown = shown

    @property
    def text(self) -> str:
        return self._shown.read_text()

    @property
    def complaints(self) -> str:
        return self._shown.with_suffix(".err").read_text()

    def shows(self, text: str) -> None:
        until(lambda: text in self.text, 20, f"{text!r} is shown", every=0.05)


@contextmanager
def following(one: Stack, *words: str) -> Iterator[Reader]:
    shown = one.home / "followed"
    with shown.open("wb") as stream, shown.with_suffix(".err").open("wb") as errors:
        argv = [BIN / "vllm-stack", "logs", "--follow", "--out", one.layout.out, *words]
        process = subprocess.Popen(argv, stdout=stream, stderr=errors, env=one.env)
        try:
            yield Reader(process, shown)
        finally:
            process.kill()
            process.wait()


def rendered(stack: StackFactory, workers: int = 1) -> Stack:
    one = stack(workers=workers)
    assert one.render() == 0
    return one


def test_what_all_programs_say_is_followed_from_before_the_start_to_after_the_stop(
    stack: StackFactory,
) -> None:
    """Ctrl-C ends it, with nothing more said."""
    one = rendered(stack, workers=2)
    with following(one) as reader:
        one.up()
        for text in (
            "supervisord | ",
            "proxy       | ",
            "worker-0    | ",
            "vllm-stack worker-1: started",
            "INFO supervisord started",
            "-> ready",
        ):
            reader.shows(text)
        assert one.vllm_stack("down").returncode == 0
        reader.shows("vllm-stack worker-0: stopped")
        one.start()
        until(lambda: reader.text.count("vllm-stack worker-0: started") == 2, 20, "the second life is shown")
        reader.process.send_signal(signal.SIGINT)
        assert reader.process.wait(10) == 130
        assert reader.complaints.strip() == ""
    told = [json.loads(line) for line in one.vllm_stack("logs", "--json", "-n", "1000").stdout.splitlines()]
    assert {line["program"] for line in told} == {"proxy", "worker-0", "worker-1", "supervisord"}
    assert [line["time"] for line in told] == sorted(line["time"] for line in told)


def test_following_goes_on_through_rotations(stack: StackFactory) -> None:
    one = rendered(stack)
    log = one.layout.log("worker-0")
    log.write_text("2026-11-26 10:00:00 first\n")
    with following(one, "worker-0") as reader:
        reader.shows("first")
        log.rename(log.with_name("worker-0.log.1"))
        log.write_text("2026-11-26 10:00:01 second \x1b]0;evil\x07\n")
        reader.shows("second \\x1b]0;evil\\x07")
        os.truncate(log, 0)
        until(lambda: reader.process.poll() is None, 1, "it goes on")
        with log.open("a") as stream:
            stream.write("third\n")
        reader.shows("worker-0 | third")
        assert reader.text.count("first") == reader.text.count("second") == 1


def test_requests_are_shown_only_when_they_are_asked_for(stack: StackFactory) -> None:
    one = rendered(stack)
    one.layout.log("worker-0").write_text("2026-11-26 10:00:00 said\n")
    request = {"time": "2026-11-26T10:00:00Z", "route": "/v1/models", "status": 200}
    one.layout.access_log.write_text(json.dumps(request) + "\n")
    assert one.vllm_stack("logs").stdout == "worker-0    | 2026-11-26 10:00:00 said\n"
    assert one.vllm_stack("logs", "requests").stdout == "requests | 2026-11-26T10:00:00Z /v1/models 200\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 1, "Nothing was said yet by proxy, worker-0, supervisord: vllm-stack up"),
        (("requests",), 1, "No request was noted"),
        (("worker-1",), 2, "'worker-1' has no log here: there are proxy, worker-0, supervisord, requests"),
        (("--since", "soon"), 2, "'soon' is neither so long ago (10m, 2h, 1d) nor a time"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    stack: StackFactory, words: tuple[str, ...], code: int, says: str
) -> None:
    done = rendered(stack).vllm_stack("logs", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]
