"""Who starts when: the first alone until it is ready, or with a distance, or all together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.polling import until
from vllm_stack.worker.turn import Stagger, Turn


def turns(state: Path, mode: str = "auto", engine: str = "e1", count: int = 3) -> list[Turn]:
    return [Turn(Stagger(mode, engine), state, f"worker-{index}") for index in range(count)]


def test_the_first_starts_alone_and_the_others_follow_when_it_is_ready(tmp_path: Path) -> None:
    first, second, third = turns(tmp_path)
    assert first.take() is None
    assert second.take() == "worker-0 starts first, alone: it fills the caches"
    assert third.take() is not None
    first.was_ready()
    assert second.take() is None
    assert third.take() is None


def test_asking_again_does_not_lose_the_turn(tmp_path: Path) -> None:
    first, second, _ = turns(tmp_path)
    assert first.take() is None
    assert first.take() is None
    assert second.take() is not None


def test_with_warm_caches_all_start_together(tmp_path: Path) -> None:
    turns(tmp_path)[0].was_ready()
    assert [turn.take() for turn in turns(tmp_path)] == [None, None, None]


def test_the_caches_of_another_engine_are_no_help(tmp_path: Path) -> None:
    turns(tmp_path)[0].was_ready()
    first, second, _ = turns(tmp_path, engine="e2")
    assert first.take() is None
    assert second.take() is not None


def test_the_engines_of_two_models_do_not_wait_for_each_other(tmp_path: Path) -> None:
    chat, chat_too, _ = turns(tmp_path, engine="chat")
    embedding, embedding_too, _ = turns(tmp_path, engine="embedding")
    assert [chat.take(), embedding.take()] == [None, None]
    assert "worker-0 starts first" in str(chat_too.take())
    assert "worker-0 starts first" in str(embedding_too.take())
    chat.was_ready()
    assert chat_too.take() is None
    assert embedding_too.take() is not None


def test_what_warms_one_engine_leaves_the_note_of_the_other(tmp_path: Path) -> None:
    for engine in ("chat", "embedding", "chat"):
        turns(tmp_path, engine=engine)[0].was_ready()
    for engine in ("chat", "embedding"):
        assert [turn.take() for turn in turns(tmp_path, engine=engine)] == [None, None, None]


def test_one_that_fails_gives_its_turn_to_the_next(tmp_path: Path) -> None:
    first, second, third = turns(tmp_path)
    assert first.take() is None
    first.give_back()
    assert second.take() is None
    assert "worker-1 starts first" in str(third.take())


def test_a_killed_one_holds_nobody_up(tmp_path: Path) -> None:
    """The kernel gives its lock back, however it went."""
    program = (
        "import sys; from pathlib import Path; from vllm_stack.worker.turn import Stagger, Turn\n"
        "turn = Turn(Stagger('auto', 'e1'), Path(sys.argv[1]), 'worker-9'); print(turn.take(), flush=True)\n"
        "sys.stdin.read()"
    )
    first, *_ = turns(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "None\n"
        assert "worker-9 starts first" in str(first.take())
        other.kill()
        other.wait()
    until(lambda: first.take() is None, 2, "the turn is free")


def test_none_lets_everybody_start(tmp_path: Path) -> None:
    assert [turn.take() for turn in turns(tmp_path, "none")] == [None, None, None]
    assert list(tmp_path.iterdir()) == []


def test_seconds_keep_a_distance_between_any_two_starts(tmp_path: Path) -> None:
    first, second, third = turns(tmp_path, "0.4")
    assert first.take() is None
    assert "worker-0 has just started" in str(second.take())
    until(lambda: second.take() is None, 3, "the second may start")
    assert "worker-1 has just started" in str(third.take())
    until(lambda: third.take() is None, 3, "the third may start")


def test_seconds_keep_the_distance_between_the_engines_of_two_models_too(tmp_path: Path) -> None:
    first, *_ = turns(tmp_path, "600", engine="chat")
    _, second, _ = turns(tmp_path, "600", engine="embedding")
    assert first.take() is None
    assert "worker-0 has just started" in str(second.take())


def test_a_worker_never_waits_for_its_own_last_start(tmp_path: Path) -> None:
    """A deliberate restart is at once."""
    assert turns(tmp_path, "600")[0].take() is None
    assert turns(tmp_path, "600")[0].take() is None
