"""`roll`, `drain` and `readmit` on a running stack: nobody's request fails, whatever happens to the verb."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.integration.conftest import BIN, CHAT, Play, Scenario, Stack, StackFactory, ask, chat
from tests.support.polling import until
from vllm_stack.layout import drain_order
from vllm_stack.records.drain_order import Reason, give_order, read_order


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)


def revision(one: Stack, worker: int) -> str | None:
    """Give the --revision that a worker's server runs with."""
    argv: list[str] = one.tree(worker) and json.loads(ask(one.ports[worker], path="/fake/state")[1])["argv"]
    return argv[argv.index("--revision") + 1] if "--revision" in argv else None


def streaming(tokens: int) -> dict[str, Any]:
    """Make a chat request for a stream of a tenth of a second a token."""
    return {**chat(tokens=tokens, delay=0.1), "stream": True}


def status(one: Stack) -> dict[str, dict[str, Any]]:
    told = json.loads(one.vllm_stack("status", "--json").stdout)
    return {worker["name"]: worker for worker in told["workers"]}


def order(one: Stack, name: str) -> Reason | None:
    found = read_order(drain_order(one.layout.state, name))
    return None if found is None else found.reason


def served_by(one: Stack) -> set[str]:
    """Ask a few things, and say who had them."""
    before = counts(one)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, one.door, "POST", CHAT, chat(tokens=3, delay=0.05)) for _ in range(6)]
        assert {future.result()[0] for future in asked} == {200}
    return {name for name, count in counts(one).items() if count > before[name]}


def counts(one: Stack) -> dict[str, int]:
    """Count the chats of each worker: it is also asked how it is, and may be at any moment."""
    seen = {
        name: json.loads(ask(port, path="/fake/requests")[1])
        for name, port in zip(one.names, one.ports, strict=True)
    }
    return {name: sum(one["target"] == CHAT for one in requests) for name, requests in seen.items()}


def begin(one: Stack, *words: str) -> subprocess.Popen[bytes]:
    """Start a roll in the background."""
    return one.ledger.start(
        [BIN / "vllm-stack", "roll", "--out", one.layout.out, *words],
        env=one.env,
        cwd=one.home,
        log=one.home / "roll.out",
    )


# ------------------------------------------------------------------ roll


def a_new_revision_and_new_settings_are_rolled_out_under_load(stack: StackFactory) -> None:
    """Streams that last longer than a stop would let them (1 s) come to their end."""
    one = stack(workers=2, policy="least-loaded").up()
    before = [one.tree(worker).server for worker in (0, 1)]
    supervisord = one.rpc("getPID")
    assert one.render(revision="v2", max_body="1") == 0
    long = streaming(tokens=40)
    with one.traffic(), ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(ask, one.door, "POST", CHAT, long) for _ in range(4)]
        rolled = one.vllm_stack("roll")
        assert rolled.returncode == 0, rolled
        for stream in streams:
            code, body = stream.result()
            assert code == 200
            assert body.endswith(b"data: [DONE]\n\n")
    assert rolled.stdout.splitlines()[-1] == "Rolled: worker-0, worker-1, proxy"
    assert [revision(one, worker) for worker in (0, 1)] == ["v2", "v2"]
    assert not {one.tree(worker).server for worker in (0, 1)} & set(before)
    assert one.rpc("getPID") == supervisord
    until(
        lambda: ask(one.door, "POST", CHAT, {**chat(), "user": "x" * 2**20})[0] == 413,
        5,
        "the new limit holds",
    )
    assert not one.layout.roll_record.exists()
    # What was rolled out is what a worker that fails comes back with.
    one.kill(one.tree(0).server)
    until(lambda: one.failure(0), 10, "it failed")
    until(lambda: one.is_ready() and one.serves(0), 20, "it is back")
    assert revision(one, 0) == "v2"


def the_first_failure_stops_the_roll_and_the_next_one_goes_on_there(stack: StackFactory) -> None:
    one = stack(workers=3, restart_delay=1).up()
    one.set_fake(1, EXIT_AT=0.2, START_STDERR="no such revision")
    untouched = one.tree(2)
    with one.traffic():
        stopped = one.vllm_stack("roll")
    assert stopped.returncode == 1
    assert "The roll stopped at worker-1: worker-1 failed: vLLM ended with exit code 1" in stopped.stderr
    assert "Not touched: worker-2." in stopped.stderr
    assert "no such revision" in stopped.stderr
    assert one.tree(2) == untouched
    assert [order(one, name) for name in one.names] == [None, None, None]
    restarted = one.tree(0)
    one.set_fake(1, EXIT_AT=-1, START_STDERR="")
    until(one.is_ready, 20, "worker-1 comes up by itself when it can")
    named = one.vllm_stack("roll", "worker-1")
    assert named.returncode == 0, named
    assert named.stdout.splitlines()[-1] == "Rolled: worker-1. `vllm-stack roll` goes on with worker-2"
    by_name = one.tree(1)
    rolled = one.vllm_stack("roll")
    assert rolled.returncode == 0, rolled
    assert "; done: worker-0, worker-1" in rolled.stdout
    assert [one.tree(worker) for worker in (0, 1)] == [restarted, by_name]
    assert one.tree(2) != untouched
    assert one.vllm_stack("roll", "worker-1").returncode == 0
    assert one.tree(1) != by_name
    assert not one.layout.roll_record.exists()


def a_worker_that_answers_badly_gets_no_requests_until_somebody_says_so(stack: StackFactory) -> None:
    one = stack(workers=2).up()
    one.set_fake(0, SCRIPTS={"*": {"status": 500}})
    with one.traffic():
        stopped = one.vllm_stack("roll")
        assert stopped.returncode == 1
        assert "worker-0 is ready, but it answered /v1/chat/completions with 500" in stopped.stderr
        assert order(one, "worker-0") is Reason.UNFIT
        found = status(one)["worker-0"]
        assert found["state"] == "drained"
        assert "the roll stopped here" in found["detail"]
    one.set_fake(0, SCRIPTS={})
    assert one.vllm_stack("roll").returncode == 0
    assert served_by(one) == {"worker-0", "worker-1"}


def the_only_worker_of_a_model_is_not_rolled_unless_it_is_meant(stack: StackFactory) -> None:
    one = stack().up()
    before = one.tree()
    refused = one.vllm_stack("roll")
    assert refused.returncode == 1
    assert "worker-0 is the only one that serves org/model" in refused.stderr
    assert one.tree() == before
    assert one.vllm_stack("drain", "0").returncode == 1
    assert order(one, "worker-0") is None
    assert one.vllm_stack("roll", "--allow-gap").returncode == 0
    assert one.tree() != before
    assert served_by(one) == {"worker-0"}


def what_a_roll_cannot_change_is_refused_before_anything_is_touched(stack: StackFactory) -> None:
    one = stack(workers=2).up()
    before = [one.tree(worker) for worker in (0, 1)]
    assert one.render(workers="1", queue_timeout="3") == 0
    refused = one.vllm_stack("roll")
    assert refused.returncode == 1
    assert "the servers: worker-0, worker-1 -> worker-0" in refused.stderr
    assert "vllm-stack down, then up" in refused.stderr
    named = one.vllm_stack("roll", "worker-1")
    assert "the servers: worker-0, worker-1 -> worker-0" in named.stderr
    assert [one.tree(worker) for worker in (0, 1)] == before


def a_verb_that_is_killed_leaves_a_stack_that_serves_and_the_next_one_finishes(stack: StackFactory) -> None:
    """Killed while it drains, while the worker loads, and just after its stop."""
    one = stack(workers=2, policy="least-loaded").up()
    one.set_fake(LOAD_SECONDS=1.5)
    first = one.tree(0)
    held = streaming(tokens=30)
    with one.traffic(), ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(ask, one.door, "POST", CHAT, held) for _ in range(4)]
        until(lambda: sum(in_flight(one).values()) > 3, 5, "streams are open")
        for moment in ("drains", "is stopped", "loads"):
            verb = begin(one)
            if moment == "drains":
                until(lambda: order(one, "worker-0") is Reason.ROLL, 10, "worker-0 is drained")
            elif moment == "is stopped":
                until(lambda: one.state("worker-0") in ("STOPPING", "STOPPED"), 20, "worker-0 is stopped")
            else:
                until(lambda: one.state("worker-0") == "STARTING", 20, "worker-0 loads")
            verb.kill()
            verb.wait(5)
            found = status(one)["worker-0"]
            assert "vllm-stack roll finishes it" in found["detail"], (moment, found)
        second = begin(one)
        until(lambda: is_rolling(one), 10, "it is under way")
        refused = one.vllm_stack("roll")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "Another roll" in refused.stderr
        assert second.wait(60) == 0, (one.home / "roll.out").read_text()
        assert {stream.result()[0] for stream in streams} == {200}
    assert one.tree(0) != first
    assert [order(one, name) for name in one.names] == [None, None]
    assert one.is_ready()


def in_flight(one: Stack) -> dict[str, int]:
    workers = json.loads(ask(one.admin, path="/workers")[1])["workers"]
    return {worker["name"]: worker["in_flight"] for worker in workers}


def is_rolling(one: Stack) -> bool:
    """Tell whether a living roll holds its lock."""
    with one.layout.roll_record.with_suffix(".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def ctrl_c_takes_a_worker_back_that_only_drained(stack: StackFactory) -> None:
    one = stack(workers=2, policy="least-loaded").up()
    before = one.tree(0)
    with ThreadPoolExecutor(4) as pool:
        held = streaming(tokens=40)
        streams = [pool.submit(ask, one.door, "POST", CHAT, held) for _ in range(4)]
        until(lambda: all(in_flight(one).values()), 5, "both have streams")
        verb = begin(one)
        until(lambda: order(one, "worker-0") is Reason.ROLL, 10, "worker-0 is drained")
        verb.send_signal(signal.SIGINT)
        assert verb.wait(10) == 130
        assert order(one, "worker-0") is None
        assert {stream.result()[0] for stream in streams} == {200}
    assert one.tree(0) == before
    assert served_by(one) == {"worker-0", "worker-1"}


def ctrl_c_starts_a_worker_again_that_was_just_stopping(stack: StackFactory) -> None:
    """supervisord starts nothing that has not stopped yet; and people press it twice."""
    one = stack(workers=2).up()
    verb = begin(one)
    until(lambda: one.state("worker-0") == "STOPPING", 20, "worker-0 is told to stop")
    for _ in range(2):
        verb.send_signal(signal.SIGINT)
    assert verb.wait(20) == 130
    assert one.state("worker-0") in ("STARTING", "RUNNING")
    assert order(one, "worker-0") is None


def what_others_do_beside_a_roll_is_heeded(stack: StackFactory) -> None:
    """A render changes what is to come, and an order by hand is nobody else's to take back."""
    one = stack(workers=3).up()
    assert one.render(revision="v2") == 0
    one.set_fake(LOAD_SECONDS=1.5)
    verb = begin(one)
    until(lambda: one.state("worker-0") == "STARTING", 20, "worker-0 loads")
    give_order(drain_order(one.layout.state, "worker-0"), "somebody", Reason.BY_HAND)
    assert one.render(revision="v3", max_body="1") == 0
    assert verb.wait(60) == 1
    told = (one.home / "roll.out").read_text()
    assert "worker-0 is ready, and stays drained" in told
    assert "The roll stopped at worker-1: something else was rendered" in told
    assert [order(one, name) for name in one.names] == [Reason.BY_HAND, None, None]
    assert one.vllm_stack("readmit", "0").returncode == 0
    rolled = one.vllm_stack("roll")
    assert rolled.stdout.splitlines()[-1] == "Rolled: worker-0, worker-1, worker-2, proxy", rolled
    assert [revision(one, worker) for worker in (0, 1, 2)] == ["v3", "v3", "v3"]


def a_reload_that_failed_is_made_up_for_by_the_next_roll(stack: StackFactory) -> None:
    one = stack(workers=2).up()
    assert one.render(max_body="1") == 0
    key = one.layout.internal_key
    aside = key.rename(key.with_suffix(".aside"))
    stopped = one.vllm_stack("roll", "proxy")
    assert stopped.returncode == 1
    assert "The roll stopped at proxy: The settings of before stay in use" in stopped.stderr
    aside.rename(key)
    rolled = one.vllm_stack("roll")
    assert rolled.stdout.splitlines()[-1] == "Rolled: worker-0, worker-1, proxy", rolled
    large = {**chat(), "user": "x" * 2**20}
    until(lambda: ask(one.door, "POST", CHAT, large)[0] == 413, 5, "the new limit holds")


# ------------------------------------------------------------------ by hand


def what_is_drained_by_hand_stays_so_until_it_is_readmitted(stack: StackFactory) -> None:
    """Over a restart of the proxy, and of the worker, and over a roll."""
    one = stack(workers=2, policy="least-loaded").up()
    with ThreadPoolExecutor(2) as pool:
        held = streaming(tokens=30)
        streams = [pool.submit(ask, one.door, "POST", CHAT, held) for _ in range(2)]
        until(lambda: all(in_flight(one).values()), 5, "both have a stream")
        begun = time.monotonic()
        impatient = one.vllm_stack("drain", "worker-0", "--drain-timeout", "0.5")
        assert impatient.returncode == 1
        assert "worker-0 has 1 request in flight after" in impatient.stderr
        drained = one.vllm_stack("drain", "0")
        assert drained.returncode == 0, drained
        assert time.monotonic() - begun > 1
        assert {stream.result()[0] for stream in streams} == {200}
    assert served_by(one) == {"worker-1"}
    assert status(one)["worker-0"]["state"] == "drained"
    assert one.vllm_stack("status").returncode == 1
    one.rpc("stopProcess", "proxy")
    one.rpc("startProcess", "proxy")
    until(lambda: one.workers_seen() == {"worker-0": "drained", "worker-1": "ready"}, 15, "as before")
    before = one.tree(0)
    refused = one.vllm_stack("roll")
    assert refused.returncode == 1, "worker-1 is the only one now"
    assert one.tree(0) != before, "what gets no requests can be restarted at any time"
    assert order(one, "worker-0") is Reason.BY_HAND
    assert one.vllm_stack("wait", "--timeout", "10").returncode == 0, "nobody waits for it"
    assert one.vllm_stack("readmit", "worker-0").returncode == 0
    assert served_by(one) == {"worker-0", "worker-1"}
    assert "was not drained" in one.vllm_stack("readmit", "0").stdout


def a_name_that_is_none_and_a_stack_that_is_none_are_one_line(stack: StackFactory) -> None:
    one = stack(workers=2)
    for verb, words in (("roll", ()), ("drain", ("0",)), ("readmit", ("0",))):
        nothing = one.vllm_stack(verb, *words)
        assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1), nothing
        assert "There is no stack in" in nothing.stderr
    assert one.render() == 0
    for verb in ("roll", "drain", "readmit"):
        wrong = one.vllm_stack(verb, "worker-7")
        if verb != "roll":
            assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong
            assert "worker-7 is no server of this stack: it has worker-0, worker-1" in wrong.stderr
    stopped = one.vllm_stack("roll")
    assert (stopped.returncode, stopped.stderr.count("\n")) == (1, 1)
    assert "supervisord is not running" in stopped.stderr
    drained = one.vllm_stack("drain", "1")
    assert drained.returncode == 0
    assert "the proxy does not run" in drained.stdout
    assert one.vllm_stack("readmit", "1").returncode == 0
