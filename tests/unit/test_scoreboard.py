"""Counters shared over forks: exact, and cleared when a process dies."""

from __future__ import annotations

import os

import pytest

from vllm_stack.proxy.scoreboard import REQUESTS, TOTALS, Scoreboard


def test_readers_see_the_sum_of_all_rows() -> None:
    board = Scoreboard(processes=2, workers=3)
    first, second = board.row(board.take_row()), board.row(board.take_row())
    first.leases[0] += 1
    second.leases[0] += 1
    second.leases[2] += 1
    second.leases[0] -= 1
    assert list(board.loads()) == [1, 0, 1]


@pytest.mark.parametrize("total", TOTALS)
def test_totals_outlive_the_process_that_counted_them(total: str) -> None:
    board = Scoreboard(processes=1, workers=2)
    number = board.take_row()
    row = board.row(number)
    row.count(TOTALS.index(total))
    row.leases[1] += 1
    board.give_back(number)
    row_again = board.row(board.take_row())
    row_again.count(TOTALS.index(total))
    assert board.totals() == dict.fromkeys(TOTALS, 0) | {total: 2}
    assert list(board.loads()) == [0, 0]


def test_rows_of_the_living_are_never_given_away() -> None:
    board = Scoreboard(processes=2, workers=1)
    taken = [board.take_row() for _ in range(4)]
    board.give_back(taken[1])
    assert board.take_row() == taken[1]
    assert len(set(taken)) == 4
    assert 0 not in taken


def test_a_forked_process_counts_in_the_memory_of_its_parent() -> None:
    board = Scoreboard(processes=1, workers=1)
    number = board.take_row()
    child = os.fork()
    if child == 0:
        row = board.row(number)
        for _ in range(1000):
            row.leases[0] += 1
            row.count(REQUESTS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert list(board.loads()) == [1000]
    board.give_back(number)
    assert list(board.loads()) == [0]
    assert board.totals()["requests"] == 1000


def test_those_that_retire_hear_that_there_is_no_room_for_as_many_again() -> None:
    board = Scoreboard(processes=1, workers=1)
    taken = []
    while board.make_room(2):
        assert not board.crowded
        taken.append(board.take_row())
    assert board.crowded
    board.give_back(taken[0])
    assert board.make_room(2)
    assert not board.crowded


def test_restarts_without_end_find_a_row_each() -> None:
    board = Scoreboard(processes=3, workers=2)
    living = [board.take_row() for _ in range(3)]
    for _ in range(1000):
        board.give_back(living.pop(0))
        living.append(board.take_row())
    assert len(set(living)) == 3
