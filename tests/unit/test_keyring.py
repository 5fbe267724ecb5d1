"""The keys that a process of the proxy takes: kept up with their file, and never an open door by accident."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vllm_stack.errors import StackError
from vllm_stack.files import File, write_files
from vllm_stack.keys import store as key_store
from vllm_stack.keys.api_key import hash_key
from vllm_stack.keys.named import KeyFile, NamedKey, encode, with_added, with_rotated, without
from vllm_stack.keys.store import KeyPaths, change_keys, present_keys, read_keys
from vllm_stack.proxy.key_usage import NO_FILE, KeyUsage
from vllm_stack.proxy.keyring import Keyring
from vllm_stack.proxy.settings import KeySettings

LOG = logging.getLogger("gunicorn.error")


def digest(word: str) -> bytes:
    return hash_key(word.encode())


@pytest.fixture
def paths(tmp_path: Path) -> KeyPaths:
    return KeyPaths(tmp_path / "keys.json")


@pytest.fixture
def usage() -> KeyUsage:
    return KeyUsage(3)


Ring = Callable[..., Keyring]


@pytest.fixture
def ring(paths: KeyPaths, usage: KeyUsage) -> Ring:
    """Make the keyring of another process."""
    rows = iter((1, 2))

    def make(*rendered: str, required: bool = False) -> Keyring:
        settings = KeySettings(tuple(map(digest, rendered)), required, paths)
        return Keyring(settings, usage.row(next(rows)), LOG)

    return make


def add(paths: KeyPaths, name: str, expires: datetime | None = None) -> KeyFile:
    """Add a key that is spelled like its name."""
    now = datetime.now(UTC)
    return change_keys(paths, lambda file: with_added(file, name, digest(name), now, expires))


def revoke(paths: KeyPaths, name: str) -> KeyFile:
    return change_keys(paths, lambda file: without(file, name, datetime.now(UTC)))


def name_of(keys: Keyring, key: str) -> str | None:
    caller = keys.find(digest(key))
    return None if caller is None else caller.name


def test_without_any_key_the_door_is_open_until_the_first_is_made(
    paths: KeyPaths, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ring()
    assert not keys.required
    file = add(paths, "alice")
    keys.look()
    ring()  # a start with a key there is changes nothing, and so is no news
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert keys.required
    assert (name_of(keys, "alice"), name_of(keys, "bob")) == ("alice", None)
    assert keys.generation == file.generation


def test_keys_given_to_render_and_named_ones_hold_together(paths: KeyPaths, ring: Ring) -> None:
    keys = ring("first", "second")
    assert keys.required
    add(paths, "alice")
    keys.look()
    assert [name_of(keys, key) for key in ("first", "second", "alice")] == ["key-1", "key-2", "alice"]
    assert [caller.name for caller in keys.callers] == ["key-1", "key-2", "alice"]


def test_every_change_is_another_epoch_and_nothing_else_is(paths: KeyPaths, ring: Ring) -> None:
    add(paths, "alice")
    keys = ring()
    epoch = keys.epoch
    keys.look()
    assert keys.epoch == epoch
    revoke(paths, "alice")
    keys.look()
    assert keys.epoch > epoch
    assert name_of(keys, "alice") is None


def test_when_the_last_key_is_revoked_the_door_stays_shut(paths: KeyPaths, ring: Ring) -> None:
    add(paths, "alice")
    keys = ring()
    revoke(paths, "alice")
    keys.look()
    assert keys.required
    assert ring().required


def test_a_stack_can_ask_for_keys_before_there_are_any(paths: KeyPaths, ring: Ring) -> None:
    keys = ring(required=True)
    assert keys.required
    assert name_of(keys, "alice") is None


def damage(paths: KeyPaths) -> None:
    write_files([File(paths.file, "{")])


def show(paths: KeyPaths) -> None:
    paths.file.chmod(0o644)


def lose(paths: KeyPaths) -> None:
    paths.file.unlink()


@pytest.mark.parametrize(("harm", "word"), [(damage, "damaged"), (show, "chmod 600"), (lose, "gone")])
def test_a_file_that_is_no_good_any_more_changes_nothing_and_is_one_line(
    paths: KeyPaths,
    ring: Ring,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[KeyPaths], None],
    word: str,
) -> None:
    add(paths, "alice")
    keys = ring()
    harm(paths)
    caplog.clear()
    for _ in range(3):
        keys.look()
    assert name_of(keys, "alice") == "alice"
    assert [word in record.getMessage() for record in caplog.records] == [True]
    late = ring()  # a process that starts now has no keys of before
    assert late.required
    assert (name_of(late, "alice"), late.generation) == (None, NO_FILE)


def test_what_was_mended_holds_again(paths: KeyPaths, ring: Ring) -> None:
    add(paths, "alice")
    keys = ring()
    show(paths)
    keys.look()
    paths.file.chmod(0o600)
    file = add(paths, "bob")
    keys.look()
    assert (name_of(keys, "bob"), keys.generation) == ("bob", file.generation)


def test_a_door_that_has_asked_for_keys_opens_in_no_process_though_all_trace_of_them_is_gone(
    paths: KeyPaths, ring: Ring
) -> None:
    assert not ring().required
    add(paths, "alice")
    keys = ring()
    assert keys.required
    paths.file.unlink()
    paths.mark.unlink()
    keys.look()
    assert keys.required
    assert Keyring(KeySettings((), False, paths), KeyUsage(1).row(0), LOG).required is False  # a new start
    assert Keyring(KeySettings((), False, paths), keys.usage.row(0), LOG).required


def test_the_loss_of_the_file_does_not_open_the_next_start(paths: KeyPaths) -> None:
    add(paths, "alice")
    paths.file.unlink()
    assert Keyring(KeySettings((), False, paths), KeyUsage(1).row(0), LOG).required


def test_a_key_ends_when_its_time_has_come(
    paths: KeyPaths, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    add(paths, "alice", now + timedelta(hours=1))
    add(paths, "bob")
    change_keys(paths, lambda file: with_rotated(file, "bob", digest("new"), now, timedelta(hours=2)))
    keys = ring()
    assert [name_of(keys, key) for key in ("alice", "bob", "new")] == ["alice", "bob", "bob"]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3601)
    epoch = keys.epoch
    keys.look()
    assert keys.epoch > epoch
    assert [name_of(keys, key) for key in ("alice", "bob", "new")] == [None, "bob", "bob"]
    monkeypatch.setattr(time, "time", lambda: real() + 7201)
    keys.look()
    assert [name_of(keys, key) for key in ("bob", "new")] == [None, "bob"]


def test_a_head_that_passed_without_a_key_is_asked_for_one_also_when_the_first_file_is_no_good(
    paths: KeyPaths, ring: Ring
) -> None:
    keys = ring()
    epoch = keys.epoch
    damage(paths)
    keys.look()
    assert keys.required
    assert keys.epoch > epoch


def test_what_one_process_saw_shuts_the_door_of_all(paths: KeyPaths, ring: Ring) -> None:
    keys, another = ring(), ring()
    epoch = keys.epoch
    add(paths, "alice")
    another.look()
    paths.file.unlink()
    keys.look()
    assert keys.required
    assert keys.epoch > epoch


def test_a_file_that_could_not_be_read_for_a_moment_is_read_the_next(
    paths: KeyPaths, ring: Ring, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(paths, "alice")
    keys = ring()
    revoke(paths, "alice")
    caplog.clear()

    def too_many_open(path: Path) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(key_store, "open_regular", too_many_open)
        for _ in range(3):
            keys.look()
    assert ["Too many open files" in record.getMessage() for record in caplog.records] == [True]
    keys.look()
    assert name_of(keys, "alice") is None


def test_a_clock_that_was_ahead_for_a_while_ends_no_key(
    paths: KeyPaths, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(paths, "alice", datetime.now(UTC) + timedelta(hours=1))
    keys = ring()
    real = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real() + 86400)
        keys.look()
        assert name_of(keys, "alice") is None
    keys.look()
    assert name_of(keys, "alice") == "alice"


def test_two_keys_of_a_name_are_counted_together(paths: KeyPaths, ring: Ring, usage: KeyUsage) -> None:
    add(paths, "alice")
    now = datetime.now(UTC)
    change_keys(paths, lambda file: with_rotated(file, "alice", digest("new"), now, timedelta(hours=1)))
    keys = ring()
    for key in ("alice", "new"):
        caller = keys.find(digest(key))
        assert caller is not None
        caller.enter()
    assert usage.totals(caller.slot)["in_flight"] == 2


def test_ten_thousand_keys_are_found_as_fast_as_one(paths: KeyPaths, ring: Ring) -> None:
    created = datetime.now(UTC)
    named = tuple(
        NamedKey(name=f"n{slot}", digest=digest(f"n{slot}").hex(), slot=slot, created=created)
        for slot in range(10_000)
    )
    write_files([File(paths.file, encode(KeyFile(1, 0, named)))])
    start = time.process_time()
    keys = ring()
    assert time.process_time() - start < 2
    start = time.process_time()
    assert all(keys.find(bytes.fromhex(key.digest)) is not None for key in named)
    assert time.process_time() - start < 1


def test_each_process_says_by_which_generation_it_goes(paths: KeyPaths, ring: Ring, usage: KeyUsage) -> None:
    first = ring()
    assert usage.seen() == [NO_FILE]
    file = add(paths, "alice")
    ring()
    assert usage.seen() == [NO_FILE, file.generation]
    first.look()
    assert usage.seen() == [file.generation] * 2


def test_a_file_that_others_can_read_is_refused_and_not_changed(paths: KeyPaths) -> None:
    add(paths, "alice")
    show(paths)
    before = paths.file.read_bytes()
    with pytest.raises(StackError, match="chmod 600"):
        add(paths, "bob")
    assert paths.file.read_bytes() == before


def test_the_file_is_for_its_owner_alone_and_shows_no_key(paths: KeyPaths) -> None:
    add(paths, "a-very-secret-word")
    assert os.stat(paths.file).st_mode & 0o777 == 0o600
    assert os.stat(paths.mark).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path, 0o600)])
def test_what_is_no_file_is_refused_without_waiting(paths: KeyPaths, make: Callable[[Path], object]) -> None:
    make(paths.file)
    with pytest.raises(StackError, match="cannot be read"):
        read_keys(paths.file)
    with pytest.raises(StackError, match="cannot be read"):
        present_keys(paths)


def test_many_that_add_at_once_all_find_a_place(paths: KeyPaths) -> None:
    children = []
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                add(paths, f"name{number}")
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    file = present_keys(paths)
    assert {key.name for key in file.keys} == {f"name{number}" for number in range(6)}
    assert len({key.slot for key in file.keys}) == 6
