"""The files of a model on their way here, side by side, and how far they are."""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_stack import __version__
from vllm_stack.model.hub import HubFile, HubModel
from vllm_stack.model.hub_errors import explain
from vllm_stack.sizes import gib

# As many as huggingface_hub and vLLM download at once.
_AT_ONCE = 8
# How often (seconds) a line tells how far it is, where there is no terminal.
_SPEAK_EVERY = 10.0
# How long (seconds) downloads may take to notice that they are to stop.
_GRACE = 3.0
# What huggingface_hub writes to, in the versions that cannot go on with it in a later run.
_HALF_FILE = re.compile(r"\.[0-9a-f]{8}\.incomplete")

Say = Callable[[str], None]


def bytes_of(files: Sequence[HubFile]) -> int:
    """Give the size of the files together, as far as the hub told it."""
    return sum(file.size or 0 for file in files)


class _Stopped(BaseException):
    """Unwinds a download that is not wanted any more; nothing between here and there catches it."""


class Download:
    """Downloads files of one model side by side, and tells how far it is.

    The library's own pool waits for files of many GiB on Ctrl-C. Here a download is stopped where it
    reports progress, and one that does not (the hub is silent) is left behind: its thread is a daemon.
    """

    def __init__(self, model: HubModel, missing: Sequence[HubFile], say: Say) -> None:
        self._model = model
        self._missing = {file.path for file in missing}
        total = bytes_of(missing)
        self._progress = Bar(total) if sys.stderr.isatty() else Lines(total, say)
        self._received: dict[str, int] = {}
        self._stop = threading.Event()
        self.whole = 0

    def fetch(self, files: Sequence[HubFile]) -> None:
        """Download those of `files` that are missing. Raises what `hub.explain` makes of an error."""
        waiting: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        missing = [file for file in files if file.path in self._missing]
        for file in missing:
            waiting.put(file)
        threads = [
            threading.Thread(target=self._work, args=(waiting, ended), daemon=True)
            for _ in range(min(_AT_ONCE, len(missing)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in missing:
                self._await(ended)
        except BaseException:
            self._stop.set()
            self._abandon(threads)
            raise

    def stop(self) -> None:
        """Say how far it got."""
        self._progress.stop(sum(self._received.values()))

    def _await(self, ended: queue.SimpleQueue[Exception | None]) -> None:
        while True:
            self._progress.show(sum(self._received.values()))
            with suppress(queue.Empty):
                if (error := ended.get(timeout=0.2)) is not None:
                    raise explain(error, self._model.name, self._model.commit) from None
                self.whole += 1
                return

    def _work(self, waiting: queue.SimpleQueue[HubFile], ended: queue.SimpleQueue[Exception | None]) -> None:
        from huggingface_hub import hf_hub_download

        with suppress(queue.Empty, _Stopped):
            while not self._stop.is_set():
                file = waiting.get_nowait()
                try:
                    hf_hub_download(
                        self._model.name,
                        file.path,
                        revision=self._model.commit,
                        library_name="vllm-stack",
                        library_version=__version__,
                        tqdm_class=self._meter(file.path),
                    )
                except Exception as error:
                    ended.put(error)
                else:
                    self._received[file.path] = file.size or self._received.get(file.path, 0)
                    ended.put(None)

    def _meter(self, path: str) -> Any:
        """Make what huggingface_hub takes for the class of its progress bars, for one file."""
        received, stop = self._received, self._stop

        class Meter:
            def __init__(self, *_: object, **__: object) -> None:
                received[path] = 0

            def __enter__(self) -> Meter:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                if stop.is_set():
                    raise _Stopped
                received[path] += int(count or 0)

            def update_transfer(self, count: float | None = 1) -> None:
                """Hear of bytes on the wire; `update` hears of the same ones when they are written."""
                if stop.is_set():
                    raise _Stopped

            def close(self, *_: object, **__: object) -> None:
                pass

            refresh = set_postfix_str = set_transfer_postfix_str = set_description = close

        return Meter

    def _abandon(self, threads: Sequence[threading.Thread]) -> None:
        """Wait a little for the downloads to end, and remove what those that do not leave half done."""
        deadline = time.monotonic() + _GRACE
        with suppress(KeyboardInterrupt):
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                half = descriptor.readlink()
                if _HALF_FILE.search(half.name):
                    half.unlink()


class Lines:
    """Says how far a download is, in a line every now and then."""

    def __init__(self, total: int, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._say = say
        self._clock = clock
        self._spoken = clock()
        self._said = -1

    def show(self, received: int) -> None:
        """Say how many bytes there are, if a line is due."""
        if self._clock() - self._spoken >= _SPEAK_EVERY:
            self.stop(received)

    def stop(self, received: int) -> None:
        """Say it now, unless that is what was said last."""
        if received != self._said:
            self._spoken, self._said = self._clock(), received
            self._say(f"{gib(received)} of {gib(self._total)}")


class Bar:
    """Shows how far a download is in the progress bar of huggingface_hub."""

    def __init__(self, total: int) -> None:
        from huggingface_hub import utils

        bar: Any = utils.tqdm  # type: ignore[attr-defined]
        self._bar = bar(total=total, unit="B", unit_scale=True, desc="Downloading")

    def show(self, received: int) -> None:
        """Show how many bytes there are."""
        self._bar.update(received - self._bar.n)

    def stop(self, received: int) -> None:
        """Show it for the last time: what is said next has a line of its own."""
        self.show(received)
        self._bar.close()
