"""`vllm-stack top`: what `status` shows, again and again, on a screen of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from vllm_stack.commands.observer import Observer, look_of, places_of
from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.errors import NoStack, UsageError
from vllm_stack.status.looks import Looks
from vllm_stack.status.picture import compose
from vllm_stack.status.screen import screen


def show_top(out: Path, interval: float) -> None:
    """Show the stack in `out` every `interval` seconds until Ctrl-C; it may go down meanwhile, and come back.

    Raises `NoStack` if none was rendered, `UsageError` where there is no terminal.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        raise UsageError("`top` needs a terminal to draw on; `vllm-stack status` prints the same once")
    find_stack_with_door(out)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for frame in _frames(out, interval, console):
            live.update(frame, refresh=True)


def _frames(out: Path, interval: float, console: Console) -> Iterator[RenderableType]:
    """Give a frame every `interval` seconds, or as fast as somebody answers who takes longer."""
    with _Eye() as eye:
        while True:
            begun = time.monotonic()
            head = Text(f"{out}  {time.strftime('%H:%M:%S')}  every {interval:g} s, Ctrl-C ends it", "dim")
            try:
                body: RenderableType = eye.look(out, console.width)
            except NoStack as error:
                eye.close()
                body = Text(f"{error}\n\nWaiting for it to come back.")
            yield Group(head, Text(), body)
            time.sleep(max(0.0, interval - (time.monotonic() - begun)))


class _Eye(ExitStack):
    """Looks at a stack, and remembers what it saw as long as it is the same one."""

    def __init__(self) -> None:
        super().__init__()
        self._stack: Stack | None = None

    def look(self, out: Path, width: int) -> RenderableType:
        """Give what there is to show now; raises `NoStack`."""
        stack = find_stack_with_door(out)
        if stack != self._stack:  # another one was rendered, and started
            self.close()
            self._stack, self._looks = stack, Looks()
            self._observer = self.enter_context(Observer(stack))
        seen = self._observer.see()
        self._looks.add(look_of(seen))
        picture = compose(stack.door.url, places_of(stack), seen, self._looks.pace())
        return screen(picture, width, self._looks.history())

    def close(self) -> None:
        """Forget it."""
        super().close()
        self._stack = None
