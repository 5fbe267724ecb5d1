"""A vLLM whose sources cannot be read is asked for its options once, and its answer is kept."""

from __future__ import annotations

import json
import os
import stat
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.polling import until
from tests.support.processes import is_alive
from vllm_stack.vllm_options.kept import cache_directory
from vllm_stack.vllm_options.known import ASKING, RENDERED, read_options

ANSWER = f"""
import argparse
parser = argparse.ArgumentParser(usage="vllm serve [options]", add_help=False)
for name in {sorted(RENDERED)!r}:
    parser.add_argument(name, help="see --not-an-option")
parser.add_argument("--of-the-wrapper", "-w", action=argparse.BooleanOptionalAction)
parser.add_argument("--help", "-h", nargs="?")
assert sys.argv[1:] == ["serve", "--help=all"], sys.argv
print("INFO 01-01 00:00:00 a line of a log")
parser.print_help()
"""


class Asked:
    """A stand-in for vLLM without sources, which notes each of its starts."""

    def __init__(self, home: Path, body: str) -> None:
        self.program = home / "wrapper"
        self.cache = home / "cache" / "vllm-stack"
        self.said: list[str] = []
        self._starts = home / "starts"
        self.write(body)

    def write(self, body: str) -> None:
        note = f"open({str(self._starts)!r}, 'a').write(f'{{os.getpid()}}\\n')"
        head = f"#!{sys.executable}\nimport os, subprocess, sys, time\n{note}\n"
        self.program.write_text(head + textwrap.dedent(body))
        self.program.chmod(0o755)

    def options(self, version: str | None = "0.32.0", patience: float = 60) -> frozenset[str] | None:
        return read_options(
            self.program, [str(self.program)], version, self.said.append, cache=self.cache, patience=patience
        )

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self._starts.read_text().splitlines()] if self._starts.exists() else []

    def only_file(self) -> Path:
        (path,) = self.cache.iterdir()
        return path


LISTED = RENDERED | {"--of-the-wrapper", "--no-of-the-wrapper", "-w", "--help", "-h"}


def test_the_program_is_asked_once_and_the_user_is_told_why_it_takes_long(tmp_path: Path) -> None:
    vllm = Asked(tmp_path, ANSWER)
    assert vllm.options() == LISTED
    assert vllm.options() == LISTED
    assert len(vllm.pids) == 1
    assert vllm.said == [ASKING]
    assert stat.S_IMODE(vllm.only_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(vllm.cache.stat().st_mode) == 0o700


def test_another_version_and_a_changed_program_are_asked_again(tmp_path: Path) -> None:
    vllm = Asked(tmp_path, ANSWER)
    vllm.options("0.32.0")
    assert vllm.options("0.33.0") == LISTED
    assert len(vllm.pids) == 2
    vllm.write(ANSWER.replace("--of-the-wrapper", "--of-another"))
    os.utime(vllm.program, ns=(0, 1))
    changed = vllm.options("0.33.0")
    assert changed is not None
    assert "--of-another" in changed
    assert len(vllm.pids) == 3


def test_an_answer_without_a_version_is_kept_for_a_day(tmp_path: Path) -> None:
    """Nothing tells that the vLLM behind a wrapper was replaced."""
    vllm = Asked(tmp_path, ANSWER)
    vllm.options(None)
    vllm.options(None)
    assert len(vllm.pids) == 1
    a_day_ago = time.time() - 25 * 3600
    os.utime(vllm.only_file(), (a_day_ago, a_day_ago))
    assert vllm.options(None) == LISTED
    assert len(vllm.pids) == 2
    vllm.options("0.32.0")
    for path in vllm.cache.iterdir():
        os.utime(path, (a_day_ago, a_day_ago))
    vllm.options("0.32.0")
    assert len(vllm.pids) == 3


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit('no torch here')",
        ANSWER + "sys.exit(3)",
        ANSWER.replace("--shutdown-timeout", "--renamed"),
        "print('  --not-vllm  a program of another kind')",
        "sys.stdout.buffer.write(bytes(range(256)) * 100)",
        "os.kill(os.getpid(), 9)",
    ],
)
def test_a_program_that_crashes_or_prints_nonsense_gives_none_and_is_not_asked_at_every_render(
    tmp_path: Path, body: str
) -> None:
    vllm = Asked(tmp_path, body)
    assert vllm.options() is None
    assert vllm.options() is None
    assert len(vllm.pids) == 1


def test_a_program_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    vllm = Asked(
        tmp_path,
        f"""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        open({str(tmp_path / "starts")!r}, "a").write(f"{{child.pid}}\\n")
        time.sleep(300)
        """,
    )
    begun = time.monotonic()
    assert vllm.options(patience=3) is None
    assert time.monotonic() - begun < 30
    assert vllm.pids
    until(lambda: not any(is_alive(pid) for pid in vllm.pids), 30, "the program and its child are gone")


def test_a_program_that_never_stops_printing_is_cut_short(tmp_path: Path) -> None:
    vllm = Asked(tmp_path, "while True: print('  --x' * 1000)")
    begun = time.monotonic()
    assert vllm.options(patience=90) is None
    assert time.monotonic() - begun < 60


def test_what_a_program_leaves_running_does_not_delay_the_answer(tmp_path: Path) -> None:
    """The child has the pipe open for as long as it lives."""
    leave = "\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
    vllm = Asked(tmp_path, ANSWER + leave)
    begun = time.monotonic()
    assert vllm.options(patience=90) == LISTED
    assert time.monotonic() - begun < 15


def test_a_program_that_cannot_be_started_gives_none(tmp_path: Path) -> None:
    vllm = Asked(tmp_path, "")
    vllm.program.chmod(0o600)
    assert vllm.options() is None
    vllm.program.unlink()
    assert vllm.options() is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"options": 3}',
        b'{"options": ["--port", 3]}',
        b'{"options": ["--a b"]}',
        b"\xff\x00",
    ],
)
def test_a_damaged_answer_is_ignored_and_replaced(tmp_path: Path, damage: bytes) -> None:
    vllm = Asked(tmp_path, ANSWER)
    vllm.options()
    vllm.only_file().write_bytes(damage)
    assert vllm.options() == LISTED
    assert len(vllm.pids) == 2
    assert set(json.loads(vllm.only_file().read_text())["options"]) == LISTED


def test_a_directory_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    vllm = Asked(tmp_path, ANSWER)
    vllm.cache.parent.mkdir()
    vllm.cache.write_text("a file stands in the way, for root too")
    assert vllm.options() == LISTED
    assert vllm.options() == LISTED
    assert len(vllm.pids) == 2


def test_a_script_that_an_interpreter_runs_is_asked_though_a_vllm_is_beside_the_interpreter(
    tmp_path: Path,
) -> None:
    vllm = Asked(tmp_path, ANSWER)
    command = [sys.executable, str(vllm.program)]
    assert read_options(Path(sys.executable), command, "0.32.0", cache=vllm.cache) == LISTED


def test_answers_are_kept_where_the_user_keeps_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory({"XDG_CACHE_HOME": "/fast"}) == Path("/fast/vllm-stack")
    assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path("/home/somebody/.cache/vllm-stack")
    assert cache_directory({}) == Path("/home/somebody/.cache/vllm-stack")
