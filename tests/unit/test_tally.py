"""What became of requests: every process counts in its own row, and readers see the sum."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_stack.proxy.tally import DURATION, FIRST_BYTE, Count, Tally

CHAT = b"/v1/chat/completions"


def one(**changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"path": CHAT, "method": b"POST", "code": 200, "server": 0}
    return usual | {"first_byte": 0.2, "duration": 1.0, "bytes_in": 10, "bytes_out": 100} | changed


def test_every_kind_of_request_is_counted_over_all_processes() -> None:
    tally = Tally(rows=4, servers=2)
    first, second = tally.row(1), tally.row(3)
    first.count(**one())
    second.count(**one())
    second.count(**one(code=503, server=None))
    second.count(**one(path=b"/v1/models", method=b"GET"))
    assert sorted(tally.counts()) == sorted(
        [
            Count("/v1/chat/completions", "POST", 200, 2),
            Count("/v1/chat/completions", "POST", 503, 1),
            Count("/v1/models", "GET", 200, 1),
        ]
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"path": b"/v1/../etc"}, Count("other", "POST", 200, 1)),
        ({"path": b"", "method": b"", "code": 400}, Count("other", "", 400, 1)),
        ({"code": 799}, Count("/v1/chat/completions", "POST", 0, 1)),
        ({"code": 499}, Count("/v1/chat/completions", "POST", 499, 1)),
    ],
)
def test_what_is_not_known_has_one_place_however_much_of_it_there_is(
    changed: dict[str, Any], expected: Count
) -> None:
    tally = Tally(rows=2, servers=1)
    tally.row(1).count(**one(**changed))
    assert list(tally.counts()) == [expected]


def test_times_and_sizes_are_by_server_and_what_the_proxy_says_itself_is_apart() -> None:
    tally = Tally(rows=3, servers=2)
    tally.row(1).count(**one(server=1, first_byte=0.05, duration=700.0))
    tally.row(2).count(**one(server=1, first_byte=0.051, duration=0.25))
    tally.row(2).count(**one(server=None, first_byte=None, duration=0.0, bytes_out=7))
    idle, busy, itself = tally.servers()
    assert idle.bytes_in == sum(idle.duration.counts) == 0
    assert busy.first_byte.counts[FIRST_BYTE.index(0.05)] == 1, "a bound belongs to its bucket"
    assert busy.first_byte.counts[FIRST_BYTE.index(0.1)] == 1
    assert busy.first_byte.sum == pytest.approx(0.101)
    assert busy.duration.counts[-1] == 1, "above all bounds"
    assert busy.duration.counts[DURATION.index(0.25)] == 1
    assert len(busy.duration.counts) == len(DURATION) + 1
    assert (busy.bytes_in, busy.bytes_out) == (20, 200)
    assert (sum(itself.first_byte.counts), sum(itself.duration.counts), itself.bytes_out) == (0, 1, 7)


def test_what_a_process_had_counted_outlives_it() -> None:
    tally = Tally(rows=2, servers=1)
    tally.row(1).count(**one())
    tally.give_back(1)
    tally.row(1).count(**one())
    assert [count.number for count in tally.counts()] == [2]
    assert tally.servers()[0].duration.sum == pytest.approx(2.0)
