"""What the dashboard's page is told, out of what workers print and leave behind; and who may ask."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vllm_stack.proxy.admin_answer import is_here
from vllm_stack.proxy.dashboard.engine import read_figures
from vllm_stack.proxy.dashboard.files import read_files
from vllm_stack.proxy.dashboard.log_page import MOST, UnknownLog, asked_log, read_log
from vllm_stack.proxy.dashboard.past_failures import PastFailures
from vllm_stack.proxy.dashboard.standing import judge, judge_upstream
from vllm_stack.records.phase import Phase, PhaseNote
from vllm_stack.worker.failure import new_failure, remember_failure

RECORDED = Path(__file__).parent / "recorded" / "vllm-0.32.prom"


# ------------------------------------------------------------------ figures


def test_the_figures_of_a_real_engine_are_found() -> None:
    figures = read_figures(RECORDED.read_bytes(), at=5.0)
    assert (figures.at, figures.running, figures.waiting, figures.kv_cache) == (5.0, 0.0, 0.0, 0.0)
    assert (figures.prompt_tokens, figures.generation_tokens) == (7348.0, 388.0)
    assert (figures.prefix_queries, figures.prefix_hits) == (7348.0, 5888.0)


def test_several_engines_of_a_server_are_summed_and_their_caches_averaged() -> None:
    text = (
        b'vllm:kv_cache_usage_perc{engine="0",model_name="a b} 9"} 0.5\n'
        b'vllm:kv_cache_usage_perc{engine="1",model_name="a b} 9"} 0.25\n'
        b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0'
    )
    figures = read_figures(text, at=0.0)
    assert (figures.kv_cache, figures.running) == (0.375, 3.0)


@pytest.mark.parametrize("text", [b"", b"\n\n", b"vllm:prompt_tokens_total", b"<html>", b"\xff\xfe\x00"])
def test_what_is_not_told_is_unknown(text: bytes) -> None:
    figures = read_figures(text, at=0.0)
    assert {figures.running, figures.waiting, figures.kv_cache, figures.prompt_tokens} == {None}


def test_a_figure_that_is_no_number_never_reaches_the_page() -> None:
    """JSON has no NaN: a browser would take nothing of the whole state."""
    text = b"vllm:kv_cache_usage_perc NaN\nvllm:num_requests_running +Inf\nvllm:num_requests_waiting ?\n"
    figures = read_figures(text, at=0.0)
    assert {figures.kv_cache, figures.running, figures.waiting} == {None}


# ------------------------------------------------------------------ states


def note(phase: str) -> PhaseNote:
    return PhaseNote(Phase(phase), since=1000.0, until=None, detail="")


@pytest.mark.parametrize(
    ("seen", "phase", "failed_at", "in_flight", "word"),
    [
        ("ready", "ready", None, 1, "ready"),
        ("ready", "starting", None, 0, "ready"),  # its wrapper will note it in a moment
        ("ready", None, None, 0, "ready"),
        ("drained", "ready", None, 2, "draining"),
        ("drained", "ready", None, 0, "drained"),
        ("not listening", "starting", None, 0, "loading"),
        ("not listening", "starting", 900.0, 0, "loading"),  # it failed in an earlier life
        ("not listening", "waiting", 999.0, 0, "waiting"),
        ("not listening", "queued", None, 0, "queued"),
        ("not listening", "blocked", None, 0, "blocked"),
        ("ready", "wedged", None, 3, "wedged"),  # its /health goes on saying 200
        ("stopping", "stopping", None, 0, "stopping"),
        ("stopping", "ready", None, 0, "stopping"),
        ("stopped", None, None, 0, "stopped"),
        ("not listening", "ready", 1000.0, 0, "failed"),
        ("not listening", "ready", None, 0, "not answering"),
        ("late", "ready", 900.0, 0, "not answering"),
        ("not listening", None, 1000.0, 0, "failed"),
        ("not listening", None, None, 0, "stopped"),
    ],
)
def test_a_workers_word_is_what_proxy_and_wrapper_know_together(
    seen: str, phase: str | None, failed_at: float | None, in_flight: int, word: str
) -> None:
    assert judge(seen, note(phase) if phase else None, failed_at, in_flight) == word


def test_every_phase_of_a_wrapper_has_a_word_that_the_page_explains() -> None:
    explained = set(re.findall(r'^  "?([a-z ]+)"?: \["', script("card.js"), re.MULTILINE))
    words = {judge("not listening", note(phase), None) for phase in Phase}
    words |= {judge(seen, None, None, 1) for seen in ("ready", "drained", "stopping", "stopped")}
    words |= {judge("not listening", None, 1.0), judge_upstream("unknown"), judge_upstream("late")}
    assert words <= explained


@pytest.mark.parametrize(
    ("seen", "word"),
    [("ready", "ready"), ("drained", "drained"), ("unknown", "unknown"), ("not listening", "not answering")],
)
def test_an_upstreams_word_is_the_proxys(seen: str, word: str) -> None:
    assert judge_upstream(seen) == word


# ------------------------------------------------------------------ failures


def test_past_failures_are_read_again_only_when_there_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.failures.jsonl"
    history = PastFailures("worker-0", path)
    assert history.read() == ()
    remember_failure(path, new_failure(-9, 12.0, "ready"))
    first = history.read()
    assert [(one.how, one.phase, one.cause) for one in first] == [("was killed by SIGKILL", "ready", None)]
    assert history.read() is first
    remember_failure(path, new_failure(1, 3.0, "starting"))
    assert [one.how for one in history.read()] == ["was killed by SIGKILL", "ended with exit code 1"]
    path.unlink()
    assert history.read() == ()


def test_half_a_line_of_the_history_costs_that_one_failure(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.failures.jsonl"
    remember_failure(path, new_failure(1, 3.0, "starting"))
    whole = path.read_bytes()
    path.write_bytes(whole[20:] + b'"text"\n[]\n{"time": 5}\n\xff\n' + whole)
    assert len(PastFailures("worker-0", path).read()) == 1


def test_control_characters_of_last_words_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.failures.jsonl"
    remember_failure(path, new_failure(1, 3.0, "starting"))
    raw = {**json.loads(path.read_text()), "cause": "a\x1b[2Jb", "lines": ["x\u202ey"] * 50}
    path.write_text(json.dumps(raw) + "\n")
    (failure,) = PastFailures("worker-0", path).read()
    assert failure.cause == "a\\x1b[2Jb"
    assert failure.lines == ("x\\u202ey",) * 12


# ------------------------------------------------------------------ logs

LOGS = {"worker-0": Path("/out/logs/worker-0.log"), "proxy": Path("/out/logs/proxy.log")}


def test_a_log_is_asked_for_by_a_name_of_the_settings() -> None:
    assert asked_log("worker=worker-0", LOGS) == (LOGS["worker-0"], 200)
    assert asked_log("worker=proxy&lines=7", LOGS) == (LOGS["proxy"], 7)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "worker=",
        "worker=worker-1",
        "worker=../secrets/internal-key",
        "worker=/etc/passwd",
        "worker=worker-0%00",
        "worker=worker-0/../proxy",
        "worker=WORKER-0",
        "lines=5",
        "worker=worker-0&lines=0",
        "worker=worker-0&lines=-1",
        f"worker=worker-0&lines={MOST + 1}",
        "worker=worker-0&lines=\u0663",
        "worker=worker-0&lines=1e9",
        "worker=worker-0&lines=" + "9" * 900,
        "worker=worker-0&lines=000000500999999999",
    ],
)
def test_no_other_log_and_no_other_number_of_lines_can_be_asked_for(query: str) -> None:
    with pytest.raises(UnknownLog):
        asked_log(query, LOGS)


def test_the_end_of_a_log_is_bounded_and_harmless(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.log"
    path.write_bytes(
        b"\n".join([b"old"] * 5 + [b"\x1b[31mred\x1b[0m \x07bell \xff", b"long" * 100_000, b"last"])
    )
    text = read_log(path, 3).decode()
    assert len(text) < 10_000
    assert text.endswith("last\n")
    assert read_log(tmp_path / "none.log", 3) == b""
    path.write_bytes(b"\x1b[31mred\x1b[0m \x07bell\n")
    assert read_log(path, 3) == b"red \\x07bell\n"


# ------------------------------------------------------------------ the page and who may see it


@pytest.mark.parametrize(
    "host", [None, "127.0.0.1", "127.0.0.1:9000", "localhost", "LOCALHOST:8123", "[::1]:9000", "[::1]"]
)
def test_whoever_asks_this_machine_by_its_own_name_is_answered(host: str | None) -> None:
    assert is_here(host)


@pytest.mark.parametrize(
    "host",
    ["", "door", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9000", "evil@127.0.0.1",
     "127.0.0.1:9000:1", "127.0.0.1:", "0.0.0.0:9000", "127.0.0.1\n", "[::1", "::1", "127.0.0.2"],
)  # fmt: skip
def test_a_page_that_had_its_name_resolved_to_this_machine_is_not(host: str) -> None:
    assert not is_here(host)


def script(name: str) -> str:
    return read_files()[f"/dashboard/{name}"].body.decode()


def test_what_the_page_asks_for_is_there_and_comes_from_the_door_itself() -> None:
    files = read_files()
    html = files["/"].body.decode()
    scripts = [script(target.removeprefix("/dashboard/")) for target in files if target.endswith(".js")]
    wanted = set(re.findall(r'(?:href|src)="([^"#]+)"', html)) - {"state"}
    wanted |= {f"dashboard/{name}" for text in scripts for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {f"/{name}" for name in wanted} <= set(files)
    everything = "".join(answer.body.decode() for answer in files.values())
    assert set(re.findall(r"https?://[^\"' ]+", everything)) == {"http://www.w3.org/2000/svg"}


def test_no_text_can_become_markup_or_a_program() -> None:
    files = read_files()
    everything = "".join(answer.body.decode() for answer in files.values())
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
    ):
        assert sink not in everything
    html = files["/"].body.decode()
    assert not re.search(r"\son[a-z]+=|<style|\sstyle=|<script(?![^>]*\ssrc=)", html)
