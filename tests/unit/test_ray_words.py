"""What Ray's workers write, followed in the files of its session."""

from __future__ import annotations

from pathlib import Path

from vllm_stack.ray.words import Words


def logs(home: Path) -> Path:
    session = home / "session_2026-11-27_18-33-14_904901_4477"
    (session / "logs").mkdir(parents=True)
    (home / "session_latest").symlink_to(session)
    return session / "logs"


def test_new_lines_of_all_workers_come_once_without_rays_marks(tmp_path: Path) -> None:
    words, place = Words(tmp_path), logs(tmp_path)
    (place / "worker-a-01-1.err").write_text(":job_id:01\n:actor_name:ServeReplica\nloading\n")
    (place / "worker-a-01-1.out").write_text("")
    (place / "raylet.out").write_text("of no interest\n")
    assert list(words.fresh()) == ["loading"]
    assert list(words.fresh()) == []
    with (place / "worker-a-01-1.err").open("a") as file:
        file.write("ready\n")
    (place / "worker-b-01-2.out").write_text("another\n")
    assert list(words.fresh()) == ["ready", "another"]


def test_a_line_comes_when_it_is_whole(tmp_path: Path) -> None:
    words, place = Words(tmp_path), logs(tmp_path)
    file = place / "worker-a-01-1.err"
    file.write_text("half a ")
    assert list(words.fresh()) == []
    file.write_text("half a line\nand")
    assert list(words.fresh()) == ["half a line"]


def test_a_file_that_is_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    words, place = Words(tmp_path), logs(tmp_path)
    file = place / "worker-a-01-1.err"
    file.write_text("a long first line\n")
    assert list(words.fresh()) == ["a long first line"]
    file.write_text("new\n")
    assert [*words.fresh(), *words.fresh()] == ["new"]


def test_before_there_is_a_session_there_is_nothing(tmp_path: Path) -> None:
    assert list(Words(tmp_path / "nowhere").fresh()) == []
