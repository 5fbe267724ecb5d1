"""`vllm-stack clean`: remove what a stack left behind that was killed all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.errors import StackError
from vllm_stack.layout import life_record, phase_note, shared_memory_record, stopping_notice
from vllm_stack.leftovers.shared_memory import SharedMemory


@dataclass(frozen=True, slots=True)
class StaleFile:
    """Something on a disk that only a running stack has a use for."""

    path: Path
    what: str


def clean_stack(out: Path, as_json: bool) -> None:
    """End the processes and remove the files that earlier lives of the stack in `out` left behind.

    Logs, rendered files, secrets and the records of failures stay. Raises `StackError` while
    supervisord runs, and when something cannot be ended or removed.
    """
    stack = find_stack(out)
    if stack.supervisord_runs():
        raise StackError(f"The stack in {stack.layout.out} runs; stop it first: vllm-stack down")
    done: list[str] = []

    def tell(line: str) -> None:
        done.append(line)
        if not as_json:
            click.echo(line)

    try:
        # The processes first: they hold the files open, and could make new ones.
        stack.sweep(tell)
        for file in stale_files(stack):
            _remove(file)
            tell(f"removed {file.path} ({file.what})")
    finally:
        if as_json:
            click.echo(json.dumps({"removed": done}, indent=2))
    if not done and not as_json:
        click.echo("Nothing was left.")


def stale_files(stack: Stack) -> list[StaleFile]:
    """Decide what to remove, once no process of the stack is left. Nothing is touched here."""
    # Shared memory before the records that tell which it is.
    return [
        *_of_supervisord(stack),
        *_shared_memory(stack),
        *_records(stack),
        *_sockets(stack),
        *_in_boxes(stack),
    ]


def _shared_memory(stack: Stack) -> Iterator[StaleFile]:
    for name in stack.program_names:
        memory = SharedMemory(shared_memory_record(stack.layout.state, name))
        yield from _existing(memory.stale(), f"shared memory of {name}")


def _of_supervisord(stack: Stack) -> Iterator[StaleFile]:
    layout = stack.layout
    # supervisord binds its socket under its own process id first.
    sockets = [layout.socket, *sorted(layout.socket.parent.glob(f"{layout.socket.name}.*"))]
    yield from _existing(sockets, "supervisord's socket")
    yield from _existing([layout.pidfile], "supervisord's process id")


def _records(stack: Stack) -> Iterator[StaleFile]:
    state = stack.layout.state
    for name in stack.program_names:
        yield from _existing([life_record(state, name)], f"the last life of {name}")
        yield from _existing([stopping_notice(state, name)], f"the notice that {name} stops")
        yield from _existing([phase_note(state, name)], f"what {name} was doing")
        yield from _existing([shared_memory_record(state, name)], f"what {name} had in /dev/shm")
    yield from _existing(sorted(state.glob("*.new")), "a record that was never finished")


def _sockets(stack: Stack) -> Iterator[StaleFile]:
    for name in stack.program_names:
        yield from _existing([stack.layout.worker_socket(name)], f"the socket of {name}")


def _in_boxes(stack: Stack) -> Iterator[StaleFile]:
    for name in stack.program_names:
        box = stack.layout.box(name)
        if box.is_dir():
            yield from _existing(sorted(box.iterdir()), f"in the working directory of {name}")


def _existing(paths: list[Path], what: str) -> Iterator[StaleFile]:
    """Give those that are there; a link that leads nowhere is there."""
    return (StaleFile(path, what) for path in paths if path.is_symlink() or path.exists())


def _remove(file: StaleFile) -> None:
    try:
        if file.path.is_dir() and not file.path.is_symlink():
            shutil.rmtree(file.path)
        else:
            file.path.unlink(missing_ok=True)
    except OSError as error:
        raise StackError(f"{file.path} cannot be removed: {error.strerror}") from None
