"""What Ray's workers write, followed line by line through all that happens to their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.ray import words as following
from vllm_stack.ray.words import Words


class Session:
    """A session of Ray whose workers write."""

    def __init__(self, temp: Path) -> None:
        self.temp = temp
        self.logs = temp / "session_latest" / "logs"
        self.words = Words(temp)

    def write(self, text: str | bytes, name: str = "worker-a-01000000-42.out") -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / name).open("ab") as stream:
            stream.write(text.encode() if isinstance(text, str) else text)

    def says(self) -> list[str]:
        return list(self.words.fresh())


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def test_before_there_is_a_session_nothing_is_said(session: Session) -> None:
    assert session.says() == []


def test_every_line_comes_once(session: Session) -> None:
    session.write("one\ntwo\n")
    assert session.says() == ["one", "two"]
    assert session.says() == []
    session.write("three\n")
    assert session.says() == ["three"]


def test_a_line_is_waited_for_until_it_has_its_end(session: Session) -> None:
    session.write("one\nhalf")
    assert session.says() == ["one"]
    assert session.says() == []
    session.write(" a line\nand")
    assert session.says() == ["half a line"]
    session.write(" on\n")
    assert session.says() == ["and on"]


def test_a_character_in_two_halves_is_whole_and_what_is_none_does_no_harm(session: Session) -> None:
    session.write("gr\u00fc".encode()[:-1])
    assert session.says() == []
    session.write("gr\u00fc".encode()[-1:] + b"n\n\xff!\n")
    assert session.says() == ["gr\u00fcn", "\ufffd!"]


def test_a_file_that_is_begun_anew_is_read_from_its_beginning_and_its_old_rest_forgotten(
    session: Session,
) -> None:
    session.write("a long line\nand a half")
    assert session.says() == ["a long line"]
    (session.logs / "worker-a-01000000-42.out").write_text("new\n")
    # It is seen at one look, and read at the next.
    assert [*session.says(), *session.says()] == ["new"]


def test_a_new_file_is_read_from_its_beginning_beside_the_others(session: Session) -> None:
    session.write("one\n")
    assert session.says() == ["one"]
    session.write("two\n")
    session.write("trouble\n", "worker-b-01000000-43.err")
    assert session.says() == ["two", "trouble"]


def test_a_file_that_is_gone_costs_the_others_nothing(session: Session) -> None:
    session.write("one\nhal")
    session.write("other\n", "worker-b-01000000-43.err")
    assert session.says() == ["one", "other"]
    (session.logs / "worker-a-01000000-42.out").unlink()
    (session.logs / "worker-c-01000000-44.out").symlink_to("nowhere")
    session.write("again\n", "worker-b-01000000-43.err")
    assert session.says() == ["again"]


def test_a_new_session_is_followed_where_the_old_one_ended(tmp_path: Path) -> None:
    session = Session(tmp_path)
    for number in ("1", "2"):
        logs = tmp_path / f"session_{number}" / "logs"
        logs.mkdir(parents=True)
        (logs / f"worker-{number}-01000000-{number}.out").write_text(f"session {number}\n")
    latest = tmp_path / "session_latest"
    latest.symlink_to("session_1")
    assert session.says() == ["session 1"]
    latest.unlink()
    latest.symlink_to("session_2")
    assert session.says() == ["session 2"]


def test_what_ray_writes_for_its_own_tools_is_left_out_and_so_are_empty_lines(session: Session) -> None:
    session.write(":job_id:01000000\n:actor_name:Replica\n\n:task_name:f\nit said :job_id:1\r\n")
    assert session.says() == ["it said :job_id:1"]


@pytest.mark.parametrize("name", ["raylet.out", "gcs_server.err", "worker-a.log", "python-core-worker-1.log"])
def test_what_ray_says_of_itself_is_not_followed(session: Session, name: str) -> None:
    session.write("of no interest\n", name)
    assert session.says() == []


def test_much_at_once_comes_bit_by_bit_and_whole(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_CHUNK", 10)
    session.write("".join(f"line {number}\n" for number in range(6)))
    assert session.says() == ["line 0"]
    found = [line for _ in range(6) for line in session.says()]
    assert found == [f"line {number}" for number in range(1, 6)]


def test_of_a_line_without_an_end_no_more_is_kept_than_a_look_takes(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_CHUNK", 10)
    session.write("x" * 100 + "end\nnext\n")
    found = [line for _ in range(12) for line in session.says()]
    assert found[1] == "next"
    assert found[0].endswith("xend")
    assert len(found[0]) <= 20


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=8)


@given(LINES.filter(lambda lines: not any(line.startswith(":") for line in lines)), st.data())
def test_however_a_text_is_written_its_lines_come_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    session = Session(tmp_path_factory.mktemp("session"))
    text = "".join(f"{line}\n" for line in lines).encode()
    found: list[str] = []
    while text:
        much = data.draw(st.integers(1, len(text)))
        session.write(text[:much])
        text = text[much:]
        found += session.says()
    assert found == lines


def test_what_an_earlier_life_wrote_is_not_said_again(tmp_path: Path) -> None:
    """Its errors would be taken for the cause of the next end."""
    earlier = Session(tmp_path)
    earlier.write("RuntimeError: of an earlier life\n")
    later = Session(tmp_path)
    assert later.says() == []
    later.write("loading\n")
    later.write("of another worker\n", "worker-b-01000000-43.err")
    assert later.says() == ["loading", "of another worker"]
