"""Files are written whole or not at all; keys stay secret; ports are really free."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from vllm_stack.errors import OutputError, PortError, UsageError
from vllm_stack.files import File, make_directories, write_files
from vllm_stack.keys.api_key import check_keys, hash_key, new_key, read_key_file
from vllm_stack.ports import PortUse, can_bind, check_free


def test_files_are_written_with_their_mode(tmp_path: Path) -> None:
    write_files([File(tmp_path / "a", "one"), File(tmp_path / "b", "two", 0o644)])
    assert (tmp_path / "a").read_text() == "one"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o644


def test_a_failed_write_replaces_nothing_and_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputError, match="missing/b"):
        write_files([File(tmp_path / "a", "new"), File(tmp_path / "missing" / "b", "x")])
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_written_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, list[str]]] = []

    def sync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(
            (is_directory, sorted(path.name for path in tmp_path.iterdir()) if is_directory else [])
        )

    monkeypatch.setattr(os, "fsync", sync)
    write_files([File(tmp_path / "a", "one"), File(tmp_path / "b", "two")])
    assert synced == [(False, []), (False, []), (True, ["a", "b"])]


def test_directories_are_for_their_owner_alone_even_if_they_were_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    make_directories([tmp_path / "out", tmp_path / "out" / "run"])
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/out"):
        make_directories([tmp_path / "file" / "out"])


def test_a_key_file_holds_one_key_per_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team a\nsk-1\n\n  sk-2  \n")
    path.chmod(0o600)
    assert read_key_file(path) == ("sk-1", "sk-2")


@pytest.mark.parametrize(("text", "mode", "says"), [("", 0o600, "no key"), ("sk-1", 0o640, "chmod 600")])
def test_an_unusable_key_file_is_refused_with_the_way_out(
    tmp_path: Path, text: str, mode: int, says: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UsageError, match=says):
        read_key_file(path)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_key_file(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["", " sk", "sk\n", "schlüssel", "a\0b"])
def test_a_key_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_keys((key,))
    assert not key.strip() or key not in str(caught.value)


def test_doubled_keys_count_once() -> None:
    assert check_keys(("b", "a", "b")) == ("b", "a")


def test_keys_are_random_and_stored_as_hashes() -> None:
    assert new_key() != new_key()
    assert len(new_key()) >= 32
    assert hash_key(b"x") != b"x"
    assert len(hash_key(b"x")) == 32


def test_a_port_somebody_listens_on_is_refused_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortError) as caught:
            check_free([PortUse(port, "127.0.0.1", "worker-0", "--base-port")])
    assert str(port) in str(caught.value)
    assert "worker-0" in str(caught.value)
    assert "--base-port" in str(caught.value)


def test_a_port_that_is_bound_but_not_listening_counts_as_taken() -> None:
    """vLLM binds its port long before it listens: a loading server must be seen too."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not can_bind("127.0.0.1", bound.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(PortError, match=host):
        can_bind(host, 8000)


def test_a_port_that_there_is_not_is_refused_before_any_is_tried() -> None:
    uses = [PortUse(port, "127.0.0.1", f"worker-{port}", "--base-port") for port in (65535, 65536)]
    with pytest.raises(PortError, match=r"worker-65536 would get port 65536, outside 1\.\.65535"):
        check_free(uses, is_free=lambda host, port: pytest.fail("one was tried"))


def test_a_name_that_no_host_can_have_is_refused() -> None:
    with pytest.raises(PortError, match="a" * 300):
        can_bind("a" * 300, 8000)


def test_a_key_file_that_is_no_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"secret\xff")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not text in UTF-8") as caught:
        read_key_file(path)
    assert "0xff" not in str(caught.value)
