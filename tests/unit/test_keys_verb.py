"""`vllm-stack keys` on a stack whose proxy does not run: what is written, what is said, what is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.ports import free_ports
from tests.support.refusal import assert_refused
from tests.unit.boxes import inventory, options, plan_for
from vllm_stack import cli
from vllm_stack.files import make_directories, write_files
from vllm_stack.keys.api_key import hash_key
from vllm_stack.render import render

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand beside a stack that was rendered without a key."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("VLLM_STACK"):
            monkeypatch.delenv(name)
    rendered(tmp_path)
    return tmp_path


def rendered(box: Path, *api_keys: str) -> None:
    plan = plan_for(options(out=box / "out", api_keys=api_keys, admin_port=free_ports(1)[0]), inventory())
    make_directories((plan.layout.out, plan.layout.secrets, plan.layout.monitoring))
    write_files(render(plan))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run(["keys", *args])
        return (code, *capfd.readouterr())

    return run


def test_a_key_is_printed_once_alone_and_only_its_digest_is_kept(box: Path, run: Run) -> None:
    code, out, err = run("add", "alice", "--concurrent", "4", "--expires", "30d")
    key = out.strip()
    assert (code, out) == (0, f"{key}\n")
    assert key not in err
    assert "from now on the door asks for one" in err
    assert "next start" in err
    path = box / "out/secrets/keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = json.loads(path.read_text())["keys"][0]
    assert (written["name"], written["concurrent"]) == ("alice", 4)
    assert written["digest"] == hash_key(key.encode()).hex()
    assert not any(key.encode() in file.read_bytes() for file in (box / "out").rglob("*") if file.is_file())


def test_the_list_shows_all_but_keys(box: Path, run: Run) -> None:
    rendered(box, "given")
    key = json.loads(run("add", "alice", "--requests-per-minute", "60", "--json")[1])
    assert "from now on" not in run("add", "bob")[2]
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "alice", "bob", "key-1"]
    assert "60/min" in out
    assert f"...{key['digest']}" in out
    assert key["key"] not in out
    listed = json.loads(run("list", "--json")[1])
    assert [one["name"] for one in listed["keys"]] == ["alice", "bob", "key-1"]
    assert {one["requests"] for one in listed["keys"]} == {None}
    assert all(len(one["digest"]) == 8 for one in listed["keys"])


def test_what_is_rotated_has_another_key_and_the_old_one_is_shown_while_it_holds(run: Run) -> None:
    first = run("add", "alice")[1]
    code, second, err = run("rotate", "alice", "--grace", "2h")
    assert code == 0
    assert second != first
    assert "holds until" in err
    assert " until " in run("list")[1]
    assert "is void" in run("rotate", "alice", "--grace", "0s")[2]


def test_the_last_revoked_key_leaves_a_shut_door(box: Path, run: Run) -> None:
    run("add", "alice")
    code, out, err = run("revoke", "alice")
    assert code == 0
    assert "alice is revoked" in out
    assert "refuses everyone" in err
    assert json.loads((box / "out/secrets/keys.json").read_text())["keys"] == []


def test_a_render_keeps_the_keys_and_says_that_they_are_asked_for(box: Path, run: Run) -> None:
    run("add", "alice")
    before = (box / "out/secrets/keys.json").read_bytes()
    plan = plan_for(options(out=box / "out"), inventory(named_keys=True))
    write_files(render(plan))
    assert (box / "out/secrets/keys.json").read_bytes() == before
    assert any("asks for the keys of `vllm-stack keys`" in note for note in plan.notes)
    assert not plan.open_to_all


@pytest.mark.parametrize(
    ("args", "code", "names"),
    [
        (["add", "söt"], 2, ["name of a key"]),
        (["add", "a b"], 2, ["'a b'"]),
        (["add", "a\nb"], 2, ["'a\\nb'"]),
        (["add", "key-3"], 2, ["key-3", "render"]),
        (["add", "x" * 65], 2, ["64"]),
        (["add", "bob", "--expires", "soon"], 2, ["'soon'", "30d"]),
        (["add", "bob", "--expires", "2001-01-01"], 2, ["2001-01-01", "over"]),
        (["add", "bob", "--concurrent", "0"], 2, ["--concurrent", "0"]),
        (["add", "bob", "--requests-per-minute", "x"], 2, ["--requests-per-minute", "x"]),
        (["add", "alice"], 1, ["alice", "rotate"]),
        (["rotate", "alice", "--grace", "1"], 2, ["'1'"]),
        (["rotate", "bob"], 1, ["'bob'", "keys list"]),
        (["revoke", "alcie"], 1, ["did you mean alice"]),
        (["revoke", "\udcff"], 1, [r"'\udcff'"]),
        (["list", "--out", "nowhere"], 1, ["nowhere"]),
        (["add", "bob", "--out", "nowhere"], 1, ["nowhere", "vllm-stack render"]),
        (["add"], 2, ["NAME"]),
        (["ad"], 2, ["ad"]),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    box: Path, run: Run, capfd: pytest.CaptureFixture[str], args: list[str], code: int, names: list[str]
) -> None:
    run("add", "alice")
    before = (box / "out/secrets/keys.json").read_bytes()
    capfd.readouterr()
    sentence, _ = assert_refused(box, capfd, ["keys", *args], code)
    assert all(name in sentence for name in names), sentence
    assert (box / "out/secrets/keys.json").read_bytes() == before


@pytest.mark.parametrize("verb", [["add", "bob"], ["list"], ["revoke", "alice"], ["rotate", "alice"]])
def test_a_file_that_others_can_read_is_refused_by_every_verb(box: Path, run: Run, verb: list[str]) -> None:
    run("add", "alice")
    (box / "out/secrets/keys.json").chmod(0o640)
    code, out, err = run(*verb)
    assert (code, out) == (1, "")
    assert "chmod 600" in err


def test_a_full_disk_leaves_the_keys_as_they_were(
    box: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", "alice")
    before = sorted((path, path.read_bytes()) for path in (box / "out/secrets").iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run("add", "bob")
    assert (code, out) == (1, "")
    assert "No space left" in err
    assert sorted((path, path.read_bytes()) for path in (box / "out/secrets").iterdir()) == before


def test_the_proxy_of_this_machine_is_asked_past_the_proxies_of_the_network(
    box: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []

    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request: Any, proxies: Any = None, **rest: Any) -> requests.Response:
            asked.append(dict(proxies or {}))
            raise requests.ConnectionError

        def close(self) -> None:
            pass

    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: Adapter())
    assert run("list")[0] == 0
    assert asked == [{}]
