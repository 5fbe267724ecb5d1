"""The file of requests: whole lines, renamed when full by any writer; a full disk costs lines only."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from tests.support.polling import until
from vllm_stack.proxy.access_log import AccessLog, Kind, _File
from vllm_stack.proxy.accounts import Accounts
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.tally import Tally


class Lost:
    """Counts what could not be written."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, lines: int) -> None:
        self.lines += lines


@pytest.fixture
def lost() -> Lost:
    return Lost()


def log_at(path: Path, lost: Lost, most: int = 10**6, backups: int = 2) -> AccessLog:
    return AccessLog(path, most, backups, lost)


KIND = {
    "key": "alice", "method": "POST", "route": "/v1/chat/completions", "model": "m", "worker": "worker-0",
    "status": 200, "end": "whole",
}  # fmt: skip


def add(log: AccessLog, **changed: Any) -> None:
    kind = {name: changed.pop(name, value) for name, value in KIND.items()}
    usual: dict[str, Any] = {
        "began": 1_700_000_000.25, "request_id": b"id-1", "bytes_in": 10, "bytes_out": 20,
        "first_byte": 0.0124, "duration": 1.5, "retries": 0,
    }  # fmt: skip
    log.add(**(usual | changed), kind=cast("Kind", tuple(kind.values())))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_all_there_is_to_say_and_nothing_of_what_was_asked(tmp_path: Path, lost: Lost) -> None:
    log = log_at(tmp_path / "requests.jsonl", lost)
    add(log)
    add(log, key=None, model='a "model"\n', worker=None, first_byte=None, status=503, retries=1)
    log.flush()
    whole, refused = lines(tmp_path / "requests.jsonl")
    assert whole == {
        "time": "2023-11-14T22:13:20.250Z",
        "id": "id-1",
        "key": "alice",
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": "m",
        "worker": "worker-0",
        "status": 200,
        "end": "whole",
        "bytes_in": 10,
        "bytes_out": 20,
        "first_byte_ms": 12.4,
        "duration_ms": 1500.0,
        "retries": 0,
    }
    assert (refused["key"], refused["model"], refused["worker"]) == (None, 'a "model"\n', None)
    assert (tmp_path / "requests.jsonl").stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_for_nothing(tmp_path: Path, lost: Lost) -> None:
    log_at(tmp_path / "requests.jsonl", lost).flush()
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_is_renamed_and_only_so_many_stay(tmp_path: Path, lost: Lost) -> None:
    log = log_at(tmp_path / "requests.jsonl", lost, most=600, backups=2)
    for number in range(12):
        add(log, request_id=b"id-%d" % number)
        log.flush()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["requests.jsonl", "requests.jsonl.1", "requests.jsonl.2"]
    kept = [line["id"] for name in reversed(names) for line in lines(tmp_path / name)]
    assert kept == [f"id-{number}" for number in range(12)][-len(kept) :]
    assert all(path.stat().st_size <= 600 for path in tmp_path.iterdir())


def test_who_did_not_rename_it_goes_on_in_the_new_file(tmp_path: Path, lost: Lost) -> None:
    path = tmp_path / "requests.jsonl"
    one, other = log_at(path, lost, most=600), log_at(path, lost, most=600)
    for number in range(6):
        for log in (one, other):
            add(log, request_id=b"id-%d" % number)
            log.flush()
    found = [line["id"] for file in sorted(tmp_path.iterdir(), reverse=True) for line in lines(file)]
    assert found == sorted(found)
    assert lost.lines == 0


def test_a_file_that_was_taken_away_is_made_again(tmp_path: Path, lost: Lost) -> None:
    path = tmp_path / "requests.jsonl"
    log = log_at(path, lost)
    add(log)
    log.flush()
    path.rename(tmp_path / "mine")  # as logrotate does
    add(log)
    log.flush()
    assert len(lines(path)) == len(lines(tmp_path / "mine")) == 1


def test_a_disk_that_takes_nothing_costs_lines_which_are_counted(
    tmp_path: Path, lost: Lost, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_at(Path("/dev/full"), lost)
    for _ in range(3):
        add(log)
        add(log)
        log.flush()
    assert lost.lines == 6
    assert [record.message for record in caplog.records] == [
        "Requests are not logged: /dev/full: No space left on device"
    ]
    gone = log_at(tmp_path / "nowhere" / "requests.jsonl", lost)
    add(gone)
    gone.flush()
    assert lost.lines == 7


def test_half_a_line_does_not_take_the_next_one_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = _File(tmp_path / "requests.jsonl", 10**6, 1), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5] if len(data) > 5 else data))
    assert file.append(b'{"a": 1}\n') == "the disk is full"
    monkeypatch.undo()
    assert file.append(b'{"b": 2}\n') is None
    assert (tmp_path / "requests.jsonl").read_bytes().splitlines()[1:] == [b'{"b": 2}']


def test_half_a_line_has_its_end_when_a_full_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = _File(tmp_path / "requests.jsonl", 10**6, 1), os.write
    room = 12

    def write_what_fits(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    assert file.append(b'{"a": 1}\n{"b": 2}\n') == "the disk is full"
    assert file.append(b'{"c": 3}\n') is not None
    monkeypatch.undo()
    for line in (b'{"d": 4}\n', b'{"e": 5}\n'):
        assert file.append(line) is None
    read = (tmp_path / "requests.jsonl").read_bytes()
    assert read == b'{"a": 1}\n{"b\n{"d": 4}\n{"e": 5}\n'


def test_who_comes_between_the_renaming_and_the_new_file_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "requests.jsonl", fcntl.flock
    file = _File(path, 12, 2)
    assert file.append(b"first line\n") is None

    def another_was_first(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if operation == fcntl.LOCK_EX:
            path.rename(tmp_path / "requests.jsonl.1")

    monkeypatch.setattr(fcntl, "flock", another_was_first)
    assert file.append(b"second line\n") is None
    assert path.read_bytes() == b"second line\n"
    assert (tmp_path / "requests.jsonl.1").read_bytes() == b"first line\n"


def test_while_a_disk_hangs_only_so_much_waits(tmp_path: Path, lost: Lost) -> None:
    log = log_at(tmp_path / "requests.jsonl", lost, most=10**8)
    for _ in range(20_000):
        add(log)
    assert lost.lines > 0
    log.flush()
    written = len(lines(tmp_path / "requests.jsonl"))
    assert written + lost.lines == 20_000
    add(log)
    log.flush()
    assert len(lines(tmp_path / "requests.jsonl")) == written + 1


def test_it_writes_by_itself(tmp_path: Path, lost: Lost) -> None:
    log = log_at(tmp_path / "requests.jsonl", lost)
    writer = gevent.spawn(log.run)
    add(log)
    until((tmp_path / "requests.jsonl").read_bytes, 5, "it is written", pause=gevent.sleep)
    writer.kill()


def test_a_file_that_was_opened_before_its_first_line_begins_with_that_line(
    tmp_path: Path, lost: Lost
) -> None:
    log = log_at(tmp_path / "requests.jsonl", lost)
    log.open()
    assert (tmp_path / "requests.jsonl").read_bytes() == b""
    add(log)
    log.flush()
    assert len(lines(tmp_path / "requests.jsonl")) == 1


def test_what_ended_just_before_a_process_is_written(tmp_path: Path, lost: Lost) -> None:
    """A process ends within moments of its last answer: nothing may wait for the next round."""
    tally = Tally(rows=2, servers=1)
    door = Door.__new__(Door)
    door.access_log = log_at(tmp_path / "requests.jsonl", lost)
    server = SimpleNamespace(name="worker-0", model=0)
    door.accounts = Accounts(tally.row(1), door.access_log, [cast("Backend", server)], [["m"]])
    head = RequestHead()
    head.method, head.path = b"POST", b"/v1/chat/completions"
    request = Request(head)
    request.status, request.server, request.tries = 200, 0, 2
    peer = SimpleNamespace(sent=70, first_sent=request.began + 0.1)
    door.accounts.settle(request, cast("Peer", peer), sent_before=50)
    assert list(tally.counts()) == []
    door.finish()
    assert [count.number for count in tally.counts()] == [1]
    (line,) = lines(tmp_path / "requests.jsonl")
    assert (line["worker"], line["bytes_out"], line["first_byte_ms"], line["retries"]) == (
        "worker-0",
        20,
        100.0,
        1,
    )
