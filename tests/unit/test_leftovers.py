"""Who belongs to a program's earlier life, and who never does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.polling import until
from tests.support.processes import ProcessLedger, is_alive
from vllm_stack.leftovers.processes import MARKER, Identity, find_leftovers, sweep
from vllm_stack.program import boot_id

TITLE = "vllm-stack:out-12345678:worker-1"
RENAMED = """
import sys, setproctitle, signal
setproctitle.setproctitle(sys.argv[1])
print(flush=True)
signal.pause()
"""


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    box = tmp_path / "run" / "worker-1"
    box.mkdir(parents=True)
    return Identity(f"{TITLE}-{os.getpid()}", box, tmp_path / "worker-1.life.json")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ProcessLedger]:
    with ProcessLedger(tmp_path) as started:
        yield started


def sleeper(
    ledger: ProcessLedger, cwd: Path = Path("/"), marker: str | None = None
) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if name != MARKER}
    return ledger.start(["sleep", "60"], cwd=cwd, env=env | ({MARKER: marker} if marker else {}))


def renamed(ledger: ProcessLedger, title: str, log: Path) -> subprocess.Popen[bytes]:
    argv: Sequence[str] = [sys.executable, "-c", RENAMED, title]
    child = ledger.start(argv, cwd=Path("/"), log=log)
    until(log.read_text, 10, "it has its title")
    return child


def pids(identity: Identity) -> set[int]:
    return {process.pid for process in find_leftovers(identity)}


@pytest.mark.parametrize(
    ("end", "ours"),
    [
        ("", True),
        ("::EngineCore", True),
        ("::Worker_TP0", True),
        ("::EngineCore_DP0 more words", True),
        ("0::EngineCore", False),
        (":EngineCore", False),
        ("x", False),
        ("-1::EngineCore", False),
    ],
)
def test_a_title_is_ours_up_to_the_double_colon(
    identity: Identity, ledger: ProcessLedger, tmp_path: Path, end: str, ours: bool
) -> None:
    child = renamed(ledger, identity.title + end, tmp_path / "log")
    assert (child.pid in pids(identity)) is ours


def test_a_title_in_front_or_in_another_argument_is_not_ours(
    identity: Identity, ledger: ProcessLedger, tmp_path: Path
) -> None:
    prefixed = renamed(ledger, f"x{identity.title}::EngineCore", tmp_path / "log")
    naming = ledger.start(["tail", "-f", "/dev/null", f"{identity.title}::EngineCore"], cwd=Path("/"))
    assert pids(identity).isdisjoint({prefixed.pid, naming.pid})


def test_who_works_in_the_box_is_ours_and_its_neighbours_are_not(
    identity: Identity, ledger: ProcessLedger
) -> None:
    """Also below it, and after it was deleted; worker-10 is another worker."""
    deep = identity.box / "cache" / "deep"
    ten = identity.box.with_name("worker-10")
    for directory in (deep, ten):
        directory.mkdir(parents=True)
    ours = [sleeper(ledger, identity.box), sleeper(ledger, deep)]
    others = [sleeper(ledger, ten), sleeper(ledger, identity.box.parent)]
    found = pids(identity)
    assert {child.pid for child in ours} <= found
    assert found.isdisjoint(child.pid for child in others)
    deep.rmdir()
    assert ours[1].pid in pids(identity)


def test_the_marker_is_a_sign_and_only_the_whole_of_it(identity: Identity, ledger: ProcessLedger) -> None:
    ours = sleeper(ledger, marker=identity.title)
    other = sleeper(ledger, marker=identity.title + "0")
    found = until(lambda: pids(identity) & {ours.pid, other.pid}, 5, "it is found")
    assert found == {ours.pid}


def test_this_process_and_its_ancestors_are_spared(identity: Identity) -> None:
    """`down` may be typed in a shell that stands in the box, or carries the marker."""
    child = (
        "import sys; from pathlib import Path; from vllm_stack.leftovers.processes import Identity, sweep\n"
        "print(sweep(Identity(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), print))"
    )
    shell = f'"{sys.executable}" -c "$1" "$2" "$3" "$4"; echo alive'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", child, identity.title, str(identity.box), str(identity.life)],
        cwd=identity.box,
        env={**os.environ, MARKER: identity.title, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\nalive\n", "")


def test_a_member_of_the_last_lifes_group_is_ours_when_its_leader_is_gone(
    identity: Identity, ledger: ProcessLedger
) -> None:
    """It left the directory and its environment, but not the group."""
    leader = ledger.start(["sh", "-c", "cd /; sleep 60 & echo; wait"], cwd=Path("/"))
    group = psutil.Process(leader.pid)
    (member,) = until(group.children, 5, "the member runs")
    record = {"boot": boot_id(), "group": leader.pid, "started": group.create_time()}
    identity.life.write_text(json.dumps(record))
    ledger.remember()
    leader.kill()
    leader.wait(5)
    assert pids(identity) == {member.pid}
    for changed in ({"boot": "another"}, {"group": leader.pid + 1}, {"started": time.time() + 60}):
        identity.life.write_text(json.dumps(record | changed))
        assert pids(identity) == set()
    member.kill()


def test_a_group_number_that_is_used_again_is_not_ours(identity: Identity, ledger: ProcessLedger) -> None:
    """Its living leader began at another time than the one that was recorded."""
    leader = ledger.start(["sh", "-c", "sleep 60 & wait"], cwd=Path("/"))
    started = psutil.Process(leader.pid).create_time()
    until(psutil.Process(leader.pid).children, 5, "the member runs")
    record = {"boot": boot_id(), "group": leader.pid, "started": started - 100}
    identity.life.write_text(json.dumps(record))
    assert pids(identity) == set()
    for process in psutil.Process(leader.pid).children():
        ledger.record(process.pid)


def test_a_life_was_cut_short_if_the_same_parent_began_it_and_its_note_is_left(identity: Identity) -> None:
    parent = psutil.Process(os.getppid())
    record = {
        "boot": boot_id(),
        "group": 1,
        "started": 1000.5,
        "parent": [parent.pid, parent.create_time()],
    }
    identity.life.write_text(json.dumps(record))
    assert identity.cut_short() == 1000.5
    for changed in ({"boot": "another"}, {"parent": [parent.pid, 0.0]}, {"parent": None}):
        identity.life.write_text(json.dumps(record | changed))
        assert identity.cut_short() is None
    identity.forget_life()
    identity.forget_life()
    assert identity.cut_short() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"boot": 1}', "\0"])
def test_a_damaged_record_of_the_last_life_is_none(identity: Identity, text: str) -> None:
    identity.life.write_text(text)
    assert identity.last_group() is None
    assert identity.cut_short() is None


def test_a_life_is_recorded_only_by_the_leader_of_a_group(identity: Identity, ledger: ProcessLedger) -> None:
    """Run by hand, a wrapper may be a guest in another's group, which must never be swept."""
    code = (
        "import os, sys; from pathlib import Path; from vllm_stack.leftovers.processes import Identity\n"
        "if os.fork() == 0:\n"
        "    Identity('t', Path('/'), Path(sys.argv[1])).record_life(); os._exit(0)\n"
        "os.wait()\n"
        "print(Path(sys.argv[1]).exists())\n"
        "Identity('t', Path('/'), Path(sys.argv[1])).record_life()\n"
        "print(os.getpid(), Identity('t', Path('/'), Path(sys.argv[1])).last_group()[0])\n"
    )
    identity.life.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", code, str(identity.life)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    existed, me, group = done.stdout.split()
    assert existed == "False"
    assert me == group


def test_a_sweep_ends_what_is_ours_says_so_once_and_leaves_the_rest(
    identity: Identity, ledger: ProcessLedger, tmp_path: Path
) -> None:
    deaf = ledger.start(
        ["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.1; done"], cwd=identity.box, log=tmp_path / "l"
    )
    titled = renamed(ledger, f"{identity.title}::EngineCore", tmp_path / "log")
    other = sleeper(ledger)
    until((tmp_path / "l").read_text, 5, "it ignores SIGTERM")
    said: list[str] = []
    assert sweep(identity, said.append)
    assert not is_alive(deaf.pid)
    assert not is_alive(titled.pid)
    assert is_alive(other.pid)
    assert len([line for line in said if f"process {deaf.pid} " in line]) == 1
    assert len([line for line in said if f"process {titled.pid} " in line]) == 1
    assert sweep(identity, said.append)


def test_a_process_that_ends_while_it_is_looked_at_is_not_there(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=identity.box
    ) as child:
        process = psutil.Process(child.pid)
        assert process in find_leftovers(identity)
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([process]))
    monkeypatch.setattr(process, "uids", psutil.Process().uids)
    monkeypatch.setattr("vllm_stack.leftovers.processes.lives", lambda process: True)
    assert find_leftovers(identity) == []


def test_a_sweep_of_nothing_says_nothing(identity: Identity) -> None:
    said: list[str] = []
    assert sweep(identity, said.append)
    assert said == []


def test_a_sweep_is_not_held_up_by_a_zombie(identity: Identity, ledger: ProcessLedger) -> None:
    """Its parent, here this process, may never collect it."""
    child = sleeper(ledger, identity.box)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 5, "it is a zombie")
    begun = time.monotonic()
    assert sweep(identity, print)
    assert time.monotonic() - begun < 1
