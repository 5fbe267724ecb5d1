"""A page worked through from its first line to its last, as a reader would."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from tests.support.polling import until
from tests.support.processes import listeners
from tests.support.terminal import CTRL_C, Terminal

from .looks import LOOKS
from .pages import Command, commands
from .tables import EXCUSED, GIVEN, ON_ONE_STACK, PYTHON_BEFORE, REPLACED, RUNNING, UNTIL_CTRL_C, UntilCtrlC
from .world import PATIENCE, World

# One directory holds one stack: whoever starts another one has ended the one in the foreground.
STARTS = re.compile(r"^make up |^supervisord |vllm-stack up\b")


@dataclass
class Beside:
    """What runs in a terminal of its own while the page goes on."""

    command: Command
    way: UntilCtrlC
    terminal: Terminal

    def end(self) -> str:
        """Type Ctrl-C, unless somebody has stopped it in order meanwhile; give all that was shown."""
        stopped = self.terminal.process.poll() is not None
        if not stopped:
            self.terminal.type(CTRL_C)
        code = self.terminal.wait(PATIENCE)
        code = 128 - code if code < 0 else code  # as a shell tells of a signal
        self.terminal.close()
        told = f"{self.command.where}: {self.command.text}\n{self.terminal.shown}"
        expected = 0 if stopped else self.way.code
        assert code == expected, f"exit code {code} instead of {expected}\n{told}"
        assert "Traceback" not in self.terminal.shown, told
        return self.terminal.shown


@dataclass
class Walk:
    """The commands of a page, in their order."""

    page: str
    world: World
    _beside: list[Beside] = field(default_factory=list)

    def go(self) -> list[Command]:
        """Run what is not excused, and give what was run; AssertionError at the first that fails."""
        found = commands(self.page)
        ran = []
        for command in found:
            if command.language == "toml":
                self._write_file(command)
        for text in self._given():
            self._step(Command(self.page, 0, "sh", text))
        for command in found:
            if command.name not in EXCUSED:
                self._step(command)
                ran.append(command)
        self._end("stack", "server")
        return ran

    def _given(self) -> tuple[str, ...]:
        """Give what the reader has typed before."""
        first = self.page in ON_ONE_STACK and not self.world.has_stack
        return (*(RUNNING if first else ()), *GIVEN.get(self.page, ()))

    def typed(self, text: str) -> str:
        """Give what is typed in this world where the page says `text`."""
        there = {replaced.words: replaced.by for replaced in REPLACED if replaced.page in ("", self.page)}
        words = "|".join(map(re.escape, there))
        return re.sub(words, lambda match: self.world.filled(there[match[0]]), text)

    def _step(self, command: Command) -> None:
        if STARTS.search(command.text):
            self._end("stack")
        if way := UNTIL_CTRL_C.get(command.name):
            self._look(command, self._until_ctrl_c(command, way))
        else:
            self._look(command, self._to_its_end(command))

    def _to_its_end(self, command: Command) -> str:
        """Run it, and give what it printed: it ended with 0, and nobody saw a traceback."""
        done = self.world.run(*self._words(command))
        told = f"{command.where}: {command.text}\ntyped as {done.args}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"exit code {done.returncode}\n{told}"
        assert "Traceback" not in done.stderr, told
        return done.stdout

    def _words(self, command: Command) -> list[str]:
        if command.language == "toml":
            self._write_file(command)
            return ["vllm-stack", "render", "-f", command.file]
        if command.language == "python":
            return ["python3", "-c", self.typed(PYTHON_BEFORE.get(self.page, "") + command.text)]
        return ["bash", "-e", "-o", "pipefail", "-c", self.typed(command.text).removesuffix(" &")]

    def _write_file(self, command: Command) -> None:
        (self.world.home / command.file).write_text(self.typed(command.text))

    def _until_ctrl_c(self, command: Command, way: UntilCtrlC) -> str:
        """Type it into a terminal; give what it has shown by the time that the page goes on."""
        terminal = Terminal(self.world.ledger, self._words(command), self.world.env, self.world.home)
        beside = Beside(command, way, terminal)
        self._beside.append(beside)
        if way.kind == "view":
            terminal.until_shown(way.text, PATIENCE)
            return self._end("view")
        ready = self.world.serves if way.kind == "stack" else self._listens
        until(lambda: ready() or self._unless_ended(beside), PATIENCE, f"{command.text!r} serves")
        return terminal.shown

    def _listens(self) -> bool:
        return bool(listeners(self.world.ports.elsewhere))

    def _unless_ended(self, beside: Beside) -> bool:
        """Have `until` show what is on the screen; fail at once where nothing more will come."""
        told = f"{beside.command.where}: {beside.command.text}\n{beside.terminal.shown}"
        if (code := beside.terminal.process.poll()) is not None:
            pytest.fail(f"it ended with {code}\n{told}")
        raise LookupError(told)

    def _end(self, *kinds: str) -> str:
        """End what runs beside, the last first; give what the first of them has shown."""
        shown = ""
        for beside in reversed([one for one in self._beside if one.way.kind in kinds]):
            self._beside.remove(beside)
            shown = beside.end()
        return shown

    def _look(self, command: Command, shown: str) -> None:
        look = LOOKS.get(f"{self.page}: {command.name}", LOOKS.get(command.name))
        if look is None:
            return
        try:
            look(self.world, shown)
        except AssertionError as error:
            error.add_note(f"{command.where}: {command.text}\n{shown}")
            raise
