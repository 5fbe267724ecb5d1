"""The master's reload, as far as it is not gunicorn's (see `tests/integration/proxy/test_reload.py`)."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from gunicorn.arbiter import Arbiter

from vllm_stack.proxy import hooks
from vllm_stack.proxy.master import Master
from vllm_stack.proxy.scoreboard import Scoreboard


def test_a_reload_waits_until_there_is_room_for_new_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody would serve until the oldest have gone, which may take them the drain timeout."""
    reloads: list[int] = []
    board = Scoreboard(processes=1, workers=1)
    monkeypatch.setattr(hooks, "shared", lambda: (None, board))
    monkeypatch.setattr(Arbiter, "reload", lambda master: reloads.append(1))
    monkeypatch.setattr(Arbiter, "manage_workers", lambda master: None)
    master = Master.__new__(Master)
    master.cfg, master.log, master.worker_age = SimpleNamespace(workers=1), logging.getLogger(), 8
    master.WORKERS, master._num_workers = {}, 1
    living = [board.take_row() for _ in range(board.rows - 1)]
    for _ in range(3):
        master.reload()
        master.manage_workers()
    assert not reloads
    assert board.crowded, "those that retire are told"
    board.give_back(living[0] or 0)
    master.manage_workers()
    master.manage_workers()
    assert len(reloads) == 1
    assert not board.crowded


def test_processes_of_before_retire_when_their_successors_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload whose processes do not come up leaves the door to the old ones."""
    told: list[int] = []
    board = Scoreboard(processes=2, workers=1)
    monkeypatch.setattr(hooks, "shared", lambda: (None, board))
    monkeypatch.setattr(Arbiter, "manage_workers", lambda master: None)
    monkeypatch.setattr(Arbiter, "kill_worker", lambda master, pid, signum: told.append(pid))
    master = Master.__new__(Master)
    master._num_workers, master._old_age = 2, 2
    rows = [board.take_row() or 0 for _ in range(4)]
    master.WORKERS = {
        100 + age: SimpleNamespace(age=age, scoreboard_row=row) for age, row in enumerate(rows, start=1)
    }
    master.manage_workers()
    board.row(rows[2]).serve()
    master.manage_workers()
    assert told == []
    board.row(rows[3]).serve()
    master.manage_workers()
    assert told == [101, 102]
    assert len(master.WORKERS) == 4
