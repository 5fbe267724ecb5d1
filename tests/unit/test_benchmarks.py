"""The benchmark's pure parts: figures, goals, the report, and telling right answers from wrong ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from benchmarks import goals
from benchmarks.answer import Answer, fault_of_completion, fault_of_stream
from benchmarks.backend import read_head
from benchmarks.cores import split
from benchmarks.dialect import completion, dechunk, sse_body, sse_event
from benchmarks.extent import FULL
from benchmarks.figures import Record, Summary, differences, percentile, ratios, summarize
from benchmarks.report import Circumstances, markdown, show, table
from benchmarks.request import chat_body, chat_request
from benchmarks.wrk import faults_of, parse_line

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-request-id: 30\r\n\r\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def fed(data: bytes, size: int | None = None) -> tuple[Answer, bool]:
    """Feed an answer, in pieces of `size` bytes, as far as it says that it is not whole."""
    answer, size = Answer(), size or len(data)
    for start in range(0, len(data), size):
        if answer.feed(data[start : start + size]):
            return answer, start + size >= len(data)
    return answer, False


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 99, 3.0),
        ([1, 2, 3, 4], 50, 2),
        (list(range(1, 101)), 99, 99),
        ([5, 1, 3], 0, 1),
        ([2, 1], 100, 2),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 50))


def test_ratios_and_differences_are_taken_within_a_round() -> None:
    """A round that one of them lacks is not compared with another round."""
    ours, theirs = {1: 10.0, 2: 30.0, 3: 9.0}, {1: 20.0, 3: 3.0}
    assert ratios(ours, theirs) == [0.5, 3.0]
    assert differences(ours, theirs) == [-10.0, 6.0]


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert ratios({1: 1.0}, {1: 0.0}) == [math.inf]


def test_a_summary_is_median_and_range() -> None:
    assert summarize([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
    assert summarize([]) is None


# ------------------------------------------------------------------ goals and report


def filled(ours: float = 50.0, theirs: float = 100.0) -> Record:
    record = Record()
    for number in (1, 2, 3):
        for target, cpu in (("ours", ours), ("vllm-router", theirs), ("haproxy", theirs / 4)):
            figures = {"cpu_us": cpu + number, "per_second": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0}
            record.add("requests-64", target, number, figures)
    record.add("memory", "ours", 1, {"idle_kb": 11.0})
    record.add("memory", "ours", 1, {"stream_kb": 90.0})
    return record


def report(record: Record) -> str:
    settings = {"ours": "with a key"}
    return markdown(
        record,
        Circumstances("2026-01-01", {"CPU": "one"}, {"ours": "1"}, settings, "core 0", "shared", FULL),
    )


def row(text: str, beginning: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("value", "limit", "expected"), [(1, 1, "met"), (0.5, 1, "met"), (1.01, 1, "missed")]
)
def test_verdict(value: float, limit: float, expected: str) -> None:
    assert goals.verdict(value, limit) == expected


def test_the_report_gives_the_verdict_of_every_goal() -> None:
    """Both limits are judged, by the median; what was not measured is said."""
    text = report(filled(ours=70.0))
    assert row(text, "CPU per request, against vllm-router")[1:] == [
        "0.71 (0.70-0.71) x",
        "<= 0.6 x: missed",
        "<= 0.8 x: met",
    ]
    assert row(text, "memory per idle")[1:] == ["11.00 kB", "<= 12 kB: met", "<= 20 kB: met"]
    assert row(text, "memory per open")[2:] == ["<= 25 kB: missed", "<= 40 kB: missed"]
    assert row(text, "CPU per event, 64 streams, against haproxy")[1:3] == [
        "not measured",
        "<= 1.4 x: not measured",
    ]
    assert row(text, "two processes against one: requests")[1] == "not measured"


def test_the_report_says_what_was_left_out_and_what_was_wrong() -> None:
    record = filled()
    record.skipped["nginx"] = "nginx is not\ninstalled"
    record.faults.append("ours, round 1: 3 timeouts")
    text = report(record)
    assert "**nginx was left out**: nginx is not installed" in text
    assert "**WRONG**: ours, round 1: 3 timeouts" in text


def test_the_report_of_nothing_is_still_one() -> None:
    assert "not measured" in report(Record())


def test_tables_have_cells_of_one_width() -> None:
    lines = table(("a", "long head"), [("longer", "1"), ("x", "22")]).splitlines()
    assert lines[2] == "| longer |         1 |"
    assert len({len(line) for line in lines}) == 1


def test_a_range_is_shown_only_if_there_is_one() -> None:
    assert show(Summary(1234.0, 1234.0, 1234.0), 0) == "1,234"
    assert show(Summary(2.0, 1.0, 3.0), 1) == "2.0 (1.0-3.0)"
    assert show(None) == "-"


# ------------------------------------------------------------------ cores


def test_the_proxy_has_a_core_of_its_own() -> None:
    assert split([0, 1]).proxy == (0,)
    assert split([0, 1]).load == (1,)
    assert split([2, 5, 7, 9], 2).proxy == (2, 5)
    assert split([2, 5, 7, 9], 2).load == (7, 9)


def test_too_few_cores_are_shared_and_that_is_said() -> None:
    assert split([0]).proxy == split([0]).load == (0,)
    assert split([0, 1], 2).proxy == split([0, 1], 2).load == (0, 1)
    assert "share" in split([0, 1], 2).words


# ------------------------------------------------------------------ wrk


SAID = {"requests": 10, "seconds": 1, "status": 0, "connect": 0, "read": 0, "write": 0, "timeout": 0}


def test_the_last_line_of_wrk_is_read() -> None:
    assert parse_line("Running 3s test\n  1 threads\n" + json.dumps(SAID) + "\n") == SAID
    assert faults_of(SAID) is None


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_a_wrk_that_did_not_run_is_no_result(output: str) -> None:
    with pytest.raises(ValueError, match="did not come to its end"):
        parse_line(output)


def test_wrong_answers_are_said() -> None:
    assert faults_of({**SAID, "status": 2, "timeout": 1}) == (
        "2 answers other than 2xx, 1 timeouts of 10 requests"
    )


# ------------------------------------------------------------------ right and wrong answers


@pytest.mark.parametrize("size", [None, 1, 7, 100])
def test_a_streamed_answer_is_whole_at_its_last_byte_however_it_is_cut(size: int | None) -> None:
    """Not before, either: the head of this one ends in the bytes that end a chunked body."""
    events = [sse_event(index, index == 2) for index in range(3)]
    answer, at_its_end = fed(CHUNKED_HEAD + chunked(*events, b"data: [DONE]\n\n"), size)
    assert at_its_end
    assert answer.body == sse_body(3)
    assert fault_of_stream(answer, 3) is None


def test_a_stream_that_was_spelled_anew_is_right() -> None:
    said = [json.loads(sse_event(index, False)[6:]) for index in range(2)]
    pieces = [b"data: " + json.dumps(chunk, indent=None).encode() + b"\n\n" for chunk in said]
    answer, _ = fed(CHUNKED_HEAD + chunked(b"".join([*pieces, b"data: [DONE]\n\n"])))
    assert answer.body != sse_body(2)
    assert fault_of_stream(answer, 2) is None


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([sse_event(0, False), sse_event(1, True)], id="no DONE"),
        pytest.param([sse_event(0, False), b"data: [DONE]\n\n"], id="an event is missing"),
        pytest.param([sse_event(1, False), sse_event(0, True), b"data: [DONE]\n\n"], id="out of order"),
        pytest.param([b'data: {"error": {}}\n\n', b"data: [DONE]\n\n"], id="an error"),
        pytest.param([], id="nothing"),
    ],
)
def test_a_stream_that_lacks_something_is_wrong(pieces: list[bytes]) -> None:
    answer, _ = fed(CHUNKED_HEAD + chunked(*pieces))
    assert fault_of_stream(answer, 2) is not None


def test_a_stream_that_is_cut_is_wrong() -> None:
    whole = CHUNKED_HEAD + chunked(*(sse_event(index, index == 1) for index in range(2)), b"data: [DONE]\n\n")
    answer, ended = fed(whole[:-5])
    assert not ended
    assert fault_of_stream(answer, 2) is not None


def completion_answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("size", [None, 1, 50])
def test_a_completion_is_whole_at_its_length(size: int | None) -> None:
    answer, at_its_end = fed(completion_answer(completion()), size)
    assert at_its_end
    assert fault_of_completion(answer) is None


@pytest.mark.parametrize("judge", [fault_of_completion, lambda answer: fault_of_stream(answer, 2)])
@pytest.mark.parametrize(
    "data",
    [
        completion_answer(completion(), "503 Service Unavailable"),
        completion_answer(b'{"choices": []}'),
        completion_answer(completion().replace(b"some length", b"no length")),
        b"",
    ],
)
def test_wrong_answers_have_a_fault(data: bytes, judge: Callable[[Answer], str | None]) -> None:
    answer, _ = fed(data) if data else (Answer(), False)
    assert judge(answer) is not None


# ------------------------------------------------------------------ the fake vLLM


def test_the_messages_are_of_the_sizes_that_the_report_names() -> None:
    assert 1100 < len(chat_body()) < 1300
    assert 500 < len(completion()) < 700
    assert 200 < len(sse_event(50, False)) < 260


def test_the_backend_reads_heads() -> None:
    head = chat_request(5).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert read_head(head)[1:] == (True, len(chat_body(5)), False)
    assert read_head(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n") == (b"/health", False, 0, True)
    assert read_head(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").length is None


def test_dechunk_waits_for_the_end() -> None:
    data = b"head" + chunked(b"abc", b"d" * 20)
    assert dechunk(data + b"next", 4) == (b"abc" + b"d" * 20, len(data))
    assert all(dechunk(data[:end], 4) is None for end in range(4, len(data)))
