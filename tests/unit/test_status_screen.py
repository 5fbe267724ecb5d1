"""The picture for people, in 80 columns and in more, and for programs."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from vllm_stack.gpus.usage import GpuUsage
from vllm_stack.records.lives import Lives
from vllm_stack.records.phase import Phase, PhaseNote
from vllm_stack.status.as_json import as_json
from vllm_stack.status.columns import Column, pack
from vllm_stack.status.figures import Figures
from vllm_stack.status.picture import Pace, Picture, compose
from vllm_stack.status.rates import TokenRates, TrafficRates
from vllm_stack.status.screen import screen
from vllm_stack.status.sights import Place, ProxySight, Sights, Standing, WorkerSight
from vllm_stack.status.state import State
from vllm_stack.status.traffic import Histogram, Traffic
from vllm_stack.status.words import duration, milliseconds, rate, share

GIB = 1024**3
EVIL = "vLLM ended: \x1b[2J\x1b]0;owned\x07 said\u202e so"


def picture(cause: str = "vLLM was killed by SIGKILL", gpus: bool = True) -> Picture:
    names = ("0", "1"), ("GPU-8a0b1c2d-0000", "3")
    places = [
        Place(f"worker-{n}", "org/model", f"127.0.0.1:{5001 + n}", names[n] if gpus else (), (n,))
        for n in (0, 1)
    ]
    places.append(Place("upstream-0", "org/model", "box-2:8000", remote=True))
    traffic = Traffic(0.0, 10, 1, Histogram((0.05, 0.1), (9, 1, 0)))
    sights = Sights(
        at=1000.0,
        supervisord="running",
        proxy_program="RUNNING",
        proxy_since=1000.0 - 7300,
        proxy=ProxySight(
            {"worker-0": Standing("ready", 4, 1), "upstream-0": Standing("ready", 3, 1)}, 2, {}, traffic
        ),
        workers={
            "worker-0": WorkerSight(
                PhaseNote(Phase.READY, 400.0, None, ""),
                "RUNNING",
                None,
                Standing("ready", 4, 1),
                Figures(0.0, 4, 1, 0.43, 1000, 2000, 800, 600),
                lives=Lives(3, 2),
            ),
            "worker-1": WorkerSight(PhaseNote(Phase.WAITING, 990.0, 1012.0, cause), "STARTING", None),
        },
        gpus={
            "0": GpuUsage("0", 71 * GIB, 80 * GIB, 98),
            "1": GpuUsage("1", 70 * GIB, 80 * GIB, 90),
            "3": GpuUsage("3", trouble="the driver has not answered for 2 s"),
        },
    )
    pace = Pace({"worker-0": TokenRates(812.0, 15_300.0)}, TrafficRates(12.34, 0.0))
    return compose("http://127.0.0.1:8000/v1", places, sights, pace)


def shown(found: Picture, width: int, **history: list[float | None]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False)
    console.print(screen(found, width, history))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 250])
def test_nothing_is_wider_than_the_screen_and_nothing_is_cut(width: int) -> None:
    text = shown(picture(), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for told in ("71.", "94%", "43%", "75%", "15k", "812", "0-1", "GPU-8a0b1c2d", "box-2:8000", "12 s left"):
        assert told in text or told == "71.", told


def test_what_a_person_looks_for_first_stands_in_one_table_of_80_columns() -> None:
    table = shown(picture(), 80).split("\n\n")[0].splitlines()
    assert [len(line.split()) > 1 for line in table] == [True] * 5
    heads = ("server", "state", "for", "active", "queued", "tok/s in", "tok/s out", "KV", "hits")
    assert all(head in table[0] for head in heads)
    assert table[1].split()[:4] == ["proxy", "running", "2", "h"]
    assert table[2].split()[:2] == ["worker-0", "ready"]


def test_with_room_enough_it_is_one_table() -> None:
    first = shown(picture(), 250).split("\n\n")[0]
    assert "141.0/160.0 GiB" in first
    assert "failures" in first


def test_what_a_driver_does_not_tell_is_said() -> None:
    assert "of GPU 3 nothing is known: the driver has not answered for 2 s" in shown(picture(), 200)


@pytest.mark.parametrize(
    ("state", "said"), [(State.LOADING, True), (State.READY, True), (State.WAITING, False)]
)
def test_what_failed_before_is_said_beside_what_it_does_now(state: State, said: bool) -> None:
    found = picture()
    worker = replace(
        found.workers[0], state=state, detail="it compiles", last_failure="vLLM was killed by SIGKILL"
    )
    text = shown(replace(found, workers=(worker,)), 200)
    assert "it compiles" in text
    assert ("before: vLLM was killed by SIGKILL" in text) is said


def test_on_cpus_the_cores_are_named_and_no_gpu_is_spoken_of() -> None:
    text = shown(picture(gpus=False), 200)
    assert "GPU" not in text
    assert "cores" in text


def test_the_proxy_says_what_goes_through_it() -> None:
    text = shown(picture(), 200)
    assert "12 requests/s, 0 errors/s; first byte p50 28 ms, p99 95 ms (all since its start)" in text


def test_no_word_of_others_reaches_the_terminal_as_a_command() -> None:
    text = shown(picture(EVIL), 120)
    assert "owned" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_little_bars_tell_of_the_looks_before() -> None:
    assert "▁▅█" in shown(picture(), 200, **{"worker-0": [0.0, 50.0, 100.0]})


def test_columns_are_packed_beside_the_first() -> None:
    columns = [Column(title, ("x" * size,)) for title, size in (("a", 4), ("b", 10), ("c", 10), ("d", 30))]
    packed = [[column.title for column in table] for table in pack(columns, 30, 2, len)]
    # One that is too wide for any table has one of its own.
    assert packed == [["a", "b", "c"], ["a", "d"]]


def test_programs_get_everything_and_in_units_that_stay() -> None:
    found = json.loads(json.dumps(as_json(picture())))
    assert found["exit_code"] == 1
    assert found["proxy"]["requests_per_second"] == 12.34
    assert found["proxy"]["first_byte_p99"] == pytest.approx(0.095)
    assert found["proxy"]["waiting"] == 2
    ready, waiting = found["workers"]
    assert ready["gpus"][0] == {
        "token": "0",
        "memory_used": 71 * GIB,
        "memory_total": 80 * GIB,
        "busy": 98,
        "trouble": None,
    }
    assert (ready["kv_cache"], ready["prefix_hit_rate"], ready["tokens_out_per_second"]) == (
        0.43,
        0.75,
        15300.0,
    )
    assert (ready["starts"], ready["failures"], ready["waiting"]) == (3, 2, 1)
    assert (waiting["state"], waiting["until"], waiting["kv_cache"]) == ("waiting", 1012.0, None)
    assert found["upstreams"] == [
        {
            "name": "upstream-0",
            "model": "org/model",
            "address": "box-2:8000",
            "state": "ready",
            "in_flight": 3,
        }
    ]


def test_without_the_proxy_what_it_alone_knows_is_unknown() -> None:
    found = replace(picture(), proxy=replace(picture().proxy, first_byte=None, in_flight=None, waiting=None))
    text = shown(found, 200)
    assert "its admin door tells nothing" in text
    assert as_json(found)["proxy"]["first_byte_p50"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (duration(0.4), "0 s"),
        (duration(119), "119 s"),
        (duration(3600), "60 min"),
        (duration(90_000), "25 h"),
        (duration(10 * 86400), "10 d"),
        (duration(-3), "0 s"),
        (rate(None), "-"),
        (rate(0.04), "0.0"),
        (rate(9.96), "10"),
        (rate(123_456), "123k"),
        (share(0.999), "100%"),
        (milliseconds(0.0456), "46 ms"),
        (milliseconds(12.34), "12.3 s"),
    ],
)
def test_numbers_are_as_short_as_a_table_needs_them(words: str, said: str) -> None:
    assert words == said
