"""Named keys as they are written down: what may be in the file, and how it changes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vllm_stack.errors import StackError, UsageError
from vllm_stack.keys.api_key import hash_key, new_client_key
from vllm_stack.keys.named import (
    MOST_NAMED,
    KeyFile,
    NamedKey,
    check_name,
    decode,
    encode,
    with_added,
    with_rotated,
    without,
)
from vllm_stack.moments import parse_duration, parse_end

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def digest(word: str) -> bytes:
    return hash_key(word.encode())


def file_of(*names: str) -> KeyFile:
    file = KeyFile()
    for name in names:
        file = with_added(file, name, digest(name), NOW)
    return file


def test_what_was_written_is_read_back() -> None:
    file = with_added(file_of("alice"), "bob", digest("b"), NOW, NOW + DAY, 60, 4)
    file = with_rotated(file, "bob", digest("b2"), NOW, timedelta(hours=1))
    assert decode(encode(file).encode()) == file


def test_every_change_is_a_later_generation_also_when_the_clock_stands_still() -> None:
    first = file_of("alice")
    second = with_added(first, "bob", digest("b"), NOW)
    assert first.generation < second.generation < without(second, "bob", NOW - DAY).generation


def test_a_file_made_anew_is_later_than_the_one_that_was_lost() -> None:
    assert with_added(KeyFile(), "a", digest("a"), NOW + DAY).generation > file_of("a", "b").generation


def test_a_slot_never_changes_and_is_given_again_after_all_others_only() -> None:
    file = without(file_of("a", "b", "c"), "b", NOW)
    file = with_added(file, "d", digest("d"), NOW)
    assert {key.name: key.slot for key in file.keys} == {"a": 0, "c": 2, "d": 3}
    last = KeyFile(file.generation, MOST_NAMED - 1, file.keys)
    last = with_added(with_added(last, "e", digest("e"), NOW), "f", digest("f"), NOW)
    assert [last.named(name).slot for name in "ef"] == [MOST_NAMED - 1, 1]


def test_a_name_is_taken_once() -> None:
    with pytest.raises(StackError, match="keys rotate alice"):
        with_added(file_of("alice"), "alice", digest("x"), NOW)


@pytest.mark.parametrize("name", ["alice", "a", "A.b_c@d-e", "7", "x" * 64])
def test_a_plain_word_is_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-a", ".a", "a\n", "\n", "a/b", "söt", "\u0430", "x" * 65, "a\0", "\udce4"]
)
def test_anything_else_is_none_and_the_message_can_be_shown(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_what_render_calls_its_keys_is_nobodys_name() -> None:
    with pytest.raises(UsageError, match="given to render"):
        check_name("key-1")
    with pytest.raises(StackError, match="given to render"):
        file_of("a").named("key-1")


def test_a_name_that_is_not_there_gets_a_hint() -> None:
    with pytest.raises(StackError, match="did you mean alice"):
        file_of("alice", "bob").named("alcie")
    with pytest.raises(StackError, match="keys list"):
        without(KeyFile(), "alice", NOW)


def test_a_rotated_key_keeps_what_it_had_and_the_one_of_before_holds_for_the_grace() -> None:
    file = with_added(KeyFile(), "a", digest("1"), NOW, NOW + 30 * DAY, 60, 4)
    key = with_rotated(file, "a", digest("2"), NOW + DAY, timedelta(hours=24)).named("a")
    assert (key.slot, key.expires, key.requests_per_minute, key.concurrent) == (0, NOW + 30 * DAY, 60, 4)
    assert key.digest == digest("2").hex()
    assert [(one.digest, one.until) for one in key.former] == [(digest("1").hex(), NOW + 2 * DAY)]


def test_the_key_of_before_never_outlives_its_own_end() -> None:
    file = with_added(KeyFile(), "a", digest("1"), NOW, NOW + DAY)
    key = with_rotated(file, "a", digest("2"), NOW, 7 * DAY, NOW + 30 * DAY).named("a")
    assert key.former[0].until == NOW + DAY
    assert key.expires == NOW + 30 * DAY


def test_without_grace_nothing_is_left_of_any_key_of_before() -> None:
    file = with_rotated(file_of("a"), "a", digest("2"), NOW, DAY)
    assert with_rotated(file, "a", digest("3"), NOW, timedelta(0)).named("a").former == ()


def test_a_shorter_grace_holds_for_all_keys_of_before() -> None:
    file = with_rotated(file_of("a"), "a", digest("2"), NOW, 9 * DAY)
    assert [one.until for one in with_rotated(file, "a", digest("3"), NOW, DAY).named("a").former] == [
        NOW + DAY
    ] * 2


def test_a_key_that_has_ended_is_rotated_only_with_a_new_end() -> None:
    file = with_added(KeyFile(), "a", digest("1"), NOW, NOW + DAY)
    with pytest.raises(StackError, match="--expires"):
        with_rotated(file, "a", digest("2"), NOW + DAY, DAY)
    assert with_rotated(file, "a", digest("2"), NOW + DAY, DAY, NOW + 9 * DAY).named("a").former == ()


def test_what_has_ended_is_forgotten_with_the_next_change() -> None:
    file = with_rotated(file_of("a"), "a", digest("2"), NOW, DAY)
    assert with_added(file, "b", digest("b"), NOW + DAY / 2).named("a").former
    assert with_added(file, "b", digest("b"), NOW + DAY).named("a").former == ()


def raw(**changes: Any) -> bytes:
    file = json.loads(encode(file_of("alice", "bob")))
    file["keys"][0] |= changes
    return json.dumps(file).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        raw()[:-9],
        raw(name="bob"),
        raw(slot=1),
        raw(slot=-1),
        raw(slot=MOST_NAMED),
        raw(digest=digest("bob").hex()),
        raw(digest="xyz"),
        raw(digest=digest("a").hex() + "\n"),
        raw(name="a b"),
        raw(name="a\n"),
        raw(created="2026-11-26T12:00:00"),
        raw(expires=5),
        raw(requests_per_minute=0),
        raw(concurrent=-1),
        raw(scope="read"),
        raw(former=[{"digest": digest("bob").hex(), "until": "2026-11-26T12:00:00Z"}]),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_without_a_digest(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode(text)
    assert str(caught.value).isprintable()
    assert not re.search("[0-9a-f]{16}", str(caught.value))


def test_the_most_keys_are_read_and_one_more_is_refused() -> None:
    keys = tuple(
        NamedKey(name=f"n{slot}", digest=f"{slot:064x}", slot=slot, created=NOW) for slot in range(MOST_NAMED)
    )
    file = KeyFile(1, 0, keys)
    assert decode(encode(file).encode()) == file
    with pytest.raises(StackError, match="revoke some"):
        with_added(file, "more", digest("more"), NOW)


def test_no_two_keys_are_the_same_and_all_can_stand_in_a_header() -> None:
    keys = {new_client_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"sk-vs-[A-Za-z0-9_-]{43}", key) for key in keys)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("2w", 14 * 86400)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1.5h", "1y", "1h ", "٣h", "999999999w", "36501d"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("30d", NOW + 30 * DAY),
        ("2026-11-26", datetime(2026, 11, 26, 23, 59, 59, tzinfo=UTC)),
        ("2026-12-31", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2026-12-31T10:00", datetime(2026, 12, 31, 10, tzinfo=UTC)),
        ("2026-12-31T10:00+02:00", datetime(2026, 12, 31, 8, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_duration_or_a_date(text: str, end: datetime) -> None:
    assert parse_end(text, NOW) == end


@pytest.mark.parametrize(
    "text", ["", "soon", "0d", "2026-11-25", "2026-11-26T11:59", "2026-13-01", "9999-12-31T23:59-01:00"]
)
def test_what_is_over_or_never_comes_is_no_end(text: str) -> None:
    with pytest.raises(UsageError):
        parse_end(text, NOW)
