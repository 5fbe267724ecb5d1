"""The options a running program goes by: kept at its first start, whatever is rendered later."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vllm_stack.records.in_force import adopt, fingerprint, fingerprint_of, kept_options, options_in_force


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def rendered(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.json", tmp_path / "b.conf"]
    for file in files:
        write(file, f"old {file.name}")
    return files


def write(file: Path, text: str) -> None:
    fresh = file.with_suffix(".fresh")
    fresh.touch(0o600)
    fresh.write_text(text)
    fresh.replace(file)


def texts(files: list[Path]) -> list[str]:
    return [file.read_text() for file in files]


def test_a_fingerprint_tells_texts_apart_and_where_one_ends(rendered: list[Path]) -> None:
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"]) != fingerprint([b"abc"])
    assert fingerprint([b"a", b"b"]) != fingerprint([b"b", b"a"])
    assert fingerprint([]) != fingerprint([b""])
    assert fingerprint(iter([b"a"])) == fingerprint([b"a"])
    assert fingerprint([b"a"]).isalnum()


def test_by_hand_the_rendered_files_are_in_force_and_nothing_is_kept(
    state: Path, rendered: list[Path]
) -> None:
    assert options_in_force(rendered, state, "worker-0", None) == rendered
    assert list(state.iterdir()) == []


def test_the_first_start_keeps_a_copy_for_its_owner_alone(state: Path, rendered: list[Path]) -> None:
    wanted = fingerprint_of(rendered)
    copies = options_in_force(rendered, state, "worker-0", wanted)
    assert texts(copies) == texts(rendered)
    assert all(copy.is_relative_to(state) for copy in copies)
    assert {stat.S_IMODE(path.stat().st_mode) for path in copies} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o700}


def test_a_later_render_changes_nothing_for_who_was_started_before(state: Path, rendered: list[Path]) -> None:
    wanted = fingerprint_of(rendered)
    options_in_force(rendered, state, "worker-0", wanted)
    for file in rendered:
        write(file, "new")
    assert texts(options_in_force(rendered, state, "worker-0", wanted)) == ["old a.json", "old b.conf"]
    rendered[0].unlink()
    assert texts(options_in_force(rendered, state, "worker-0", wanted)) == ["old a.json", "old b.conf"]


def test_new_options_replace_the_kept_ones_of_this_program_alone(state: Path, rendered: list[Path]) -> None:
    (state / "worker-1.failure.json").write_text("{}")
    (state / "worker-1.life.json").write_text("{}")
    for name in ("worker-1", "worker-10", "worker-11", "proxy"):
        options_in_force(rendered, state, name, fingerprint_of(rendered))
    others = {path.name for path in state.iterdir() if not path.name.startswith("worker-1.")}
    write(rendered[0], "new")
    copies = options_in_force(rendered, state, "worker-1", wanted := fingerprint_of(rendered))
    assert texts(copies) == ["new", "old b.conf"]
    assert {path.name for path in state.iterdir()} == {
        *others,
        f"worker-1.{wanted}",
        "worker-1.in-force",
        "worker-1.failure.json",
        "worker-1.life.json",
    }


def test_options_that_nobody_kept_are_the_rendered_ones(state: Path, rendered: list[Path]) -> None:
    """A file edited by hand after the render is meant as it stands, and is not kept under a false name."""
    wanted = fingerprint_of(rendered)
    write(rendered[0], "edited")
    assert options_in_force(rendered, state, "worker-0", wanted) == rendered
    assert list(state.iterdir()) == []


def test_a_copy_that_was_never_finished_is_made_again(state: Path, rendered: list[Path]) -> None:
    """A wrapper killed in the middle of the copying leaves no half options in force."""
    wanted = fingerprint_of(rendered)
    half = state / f"worker-0.{wanted}.new"
    half.mkdir()
    (half / "a.json").write_text("ha")
    assert texts(options_in_force(rendered, state, "worker-0", wanted)) == texts(rendered)
    assert {path.name for path in state.iterdir()} == {f"worker-0.{wanted}", "worker-0.in-force"}


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(state: Path, rendered: list[Path]) -> None:
    rendered[1].unlink()
    with pytest.raises(OSError, match=r"b\.conf"):
        options_in_force(rendered, state, "worker-0", "0" * 16)


# ------------------------------------------------------------------ what a roll has a program adopt


def started(state: Path, rendered: list[Path], told: str) -> list[str]:
    """Give what a program goes by that supervisord (the parent of this process) tells `told`."""
    return texts(options_in_force(rendered, state, "worker-0", told))


def test_what_was_adopted_holds_whatever_supervisord_tells_and_whatever_is_rendered_later(
    state: Path, rendered: list[Path]
) -> None:
    told = fingerprint_of(rendered)
    assert started(state, rendered, told) == ["old a.json", "old b.conf"]
    write(rendered[0], "new")
    assert adopt(rendered, state, "worker-0", os.getppid())
    write(rendered[0], "newer")
    assert started(state, rendered, told) == ["new", "old b.conf"]
    assert started(state, rendered, told) == ["new", "old b.conf"]
    kept = kept_options(state, "worker-0")
    assert kept is not None
    assert (kept / "a.json").read_text() == "new"


def test_one_can_adopt_again_and_go_back(state: Path, rendered: list[Path]) -> None:
    told = fingerprint_of(rendered)
    started(state, rendered, told)
    for text in ("new", "newer", "old a.json"):
        write(rendered[0], text)
        assert adopt(rendered, state, "worker-0", os.getppid())
        assert not adopt(rendered, state, "worker-0", os.getppid())
        assert started(state, rendered, told)[0] == text


def test_another_supervisord_tells_what_was_rendered_by_then(state: Path, rendered: list[Path]) -> None:
    """Its programs must not go by what they adopted under the last one."""
    told = fingerprint_of(rendered)
    started(state, rendered, told)
    write(rendered[0], "new")
    adopt(rendered, state, "worker-0", os.getpid())  # not our parent
    write(rendered[0], "old a.json")
    assert started(state, rendered, told) == ["old a.json", "old b.conf"]


def test_what_supervisord_is_told_by_an_update_goes_before_what_was_adopted(
    state: Path, rendered: list[Path]
) -> None:
    started(state, rendered, fingerprint_of(rendered))
    write(rendered[0], "adopted")
    adopt(rendered, state, "worker-0", os.getppid())
    write(rendered[0], "updated")
    assert started(state, rendered, fingerprint_of(rendered)) == ["updated", "old b.conf"]


def test_who_never_started_goes_by_what_is_rendered_and_has_nothing_to_adopt(
    state: Path, rendered: list[Path]
) -> None:
    assert kept_options(state, "worker-0") is None
    assert adopt(rendered, state, "worker-0", os.getppid())
    assert list(state.iterdir()) == []


def test_an_order_that_is_written_meanwhile_is_not_in_the_way(state: Path, rendered: list[Path]) -> None:
    """Records are made beside their place, too; here one was left half written."""
    (state / "worker-0.new").write_text("{")
    started(state, rendered, fingerprint_of(rendered))
    assert (state / "worker-0.new").read_text() == "{"
