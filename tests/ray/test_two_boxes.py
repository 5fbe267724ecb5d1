"""Two boxes, which are two Ray nodes on this machine with a core each: a place for one replica on each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import client
from tests.ray.conftest import READY, Head, Member, answer_of, chat, own_address, read_json
from tests.support.polling import until
from tests.support.processes import ProcessLedger

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def lone_head(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ledger: ProcessLedger) -> Head:
    """A head that has a place for one of two replicas, and waits for a box with another."""
    if len(CORES) < 2:
        pytest.skip("two boxes need two cores")
    stack = Head(tmp_path_factory.mktemp("head"), ledger)
    stack.cores, stack.replicas = str(CORES[0]), 2
    stack.render_for_ray(tiny_model, "--ray-host", own_address())
    stack.start()
    return stack


@pytest.fixture(scope="module")
def member(
    tmp_path_factory: pytest.TempPathFactory, lone_head: Head, ledger: ProcessLedger
) -> Iterator[Member]:
    box = Member(tmp_path_factory.mktemp("member"), ledger, lone_head, str(CORES[1]))
    yield box
    box.down()


def test_nothing_is_deployed_before_every_replica_has_a_place(lone_head: Head) -> None:
    lack = "the cluster has 1 CPU on 1 box, and 2 are needed"
    until(lambda: lack in lone_head.log("ray"), 120, "the head says what it waits for", every=0.2)
    assert f"vllm-stack join {own_address()}:{lone_head.ray_port}" in lone_head.log("ray")
    assert not lone_head.ask("/api/serve/applications/")["applications"]
    result = lone_head.vllm_stack("status", "--json")
    assert result.returncode == 3


def test_a_token_of_another_cluster_is_refused_and_nothing_is_started(member: Member, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    result = member.join(token=token)
    assert result.returncode == 1
    assert "does not take the token" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (member.layout.out / "supervisord.conf").exists()


def test_a_second_box_joins_and_a_replica_lands_on_it(lone_head: Head, member: Member) -> None:
    result = member.join()
    assert result.returncode == 0, result.stdout + result.stderr
    nodes = lone_head.ask("/api/v0/nodes")["data"]["result"]["result"]
    assert len([node for node in nodes if node["state"] == "ALIVE"]) == 2
    until(lambda: len(lone_head.running()) == 2, READY, "both replicas run", every=1)
    assert len({replica["node_id"] for replica in lone_head.running()}) == 2
    lone_head.wait()
    with client(lone_head) as api:
        assert {chat(api).usage.completion_tokens for _ in range(8)} == {5}
    status = member.head._run(*member_verb("status", member))
    assert (status.returncode, "has joined" in status.stdout) == (0, True)


def test_verbs_for_clients_are_referred_to_the_head(member: Member) -> None:
    result = member.head._run(*member_verb("keys", member)[:2], "list", "--out", str(member.layout.out))
    assert result.returncode == 1
    assert f"has joined the Ray cluster of {own_address()}" in result.stderr


def test_a_box_that_is_lost_is_missed_and_comes_back(lone_head: Head, member: Member) -> None:
    """Its raylet is killed: the other box answers at once, and the lost one joins again by itself."""
    raylet = member.raylet()
    (state,) = (member.layout.state / "ray.lives.json",)
    lives = read_json(state)
    raylet.send_signal(signal.SIGKILL)
    until(
        lambda: answer_of(lone_head).usage.completion_tokens == 5, 60, "the service answers again", every=0.5
    )
    until(lambda: read_json(state) != lives, 60, "the lost box is started again", every=0.5)
    until(lambda: member.raylet().pid != raylet.pid, 60, "it has joined again", every=0.5)
    until(lambda: len(lone_head.running()) == 2, READY, "both replicas run again", every=1)
    assert answer_of(lone_head).usage.completion_tokens == 5


def member_verb(verb: str, member: Member) -> list[str]:
    from tests.e2e.conftest import BIN

    return [str(BIN / "vllm-stack"), verb, "--out", str(member.layout.out)]
