"""`vllm-stack fetch`: download a model once, at one commit, before N workers race for it."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vllm_stack import __version__
from vllm_stack.errors import HubError, MachineError, StackError, UsageError
from vllm_stack.given import check_text, expanded
from vllm_stack.model.hub import HubFile, HubModel, ask_hub, explain, offline
from vllm_stack.model.hub_cache import find_snapshot, is_commit, is_whole, repository_directory
from vllm_stack.sizes import gib

# How long (seconds) the hub may take to say what there is.
_PATIENCE = 30.0
# As many as huggingface_hub and vLLM download at once.
_AT_ONCE = 8
# How often (seconds) a line tells how far it is, where there is no terminal.
_SPEAK_EVERY = 10.0
# How long (seconds) downloads may take to notice that they are to stop.
_GRACE = 3.0
# What huggingface_hub writes to, in the versions that cannot go on with it in a later run.
_HALF_FILE = re.compile(r"\.[0-9a-f]{8}\.incomplete")

_Say = Callable[[str], None]


def fetch_model(name: str, revision: str | None, as_json: bool) -> None:
    """Download what vLLM will want of a hub model into the hub's cache, and say its commit.

    Progress goes to stderr, the result to stdout. A model that is there is not downloaded again. Ctrl-C
    keeps every file that is whole. Raises `UsageError` for a name or a revision that is none, `StackError`
    for a local directory, `HubError` if the hub does not give the model, and `MachineError` if the disk
    cannot take it.
    """
    check_text("MODEL", name)
    check_text("--revision", revision)
    if not name:
        raise UsageError("MODEL is empty: name a model on the hub (organisation/model)")
    if revision == "":
        raise UsageError("--revision is empty: name a branch, a tag or a commit, or leave it out")
    if os.path.isdir(expanded(name)):
        raise StackError(f"{name} is a directory on this machine: there is nothing to fetch, just render it")
    snapshot = find_snapshot(name, revision)
    # A commit never moves: the hub has nothing to add. Weights come last, so what has them has the rest.
    if snapshot and (offline() or is_commit(revision)) and is_whole(snapshot):
        _say(f"{name} is already in {snapshot}")
    else:
        snapshot = _fetch(name, revision)
    if as_json:
        click.echo(json.dumps(_result(name, snapshot)))
    else:
        click.echo(f"{name} is at commit {snapshot.name}")
        click.echo(f"vllm-stack render {name} --revision {snapshot.name}")


def _fetch(name: str, revision: str | None) -> Path:
    """Download what is missing and give the snapshot."""
    model = ask_hub(name, revision, _PATIENCE, read_index=True)
    if not model.weights:
        raise HubError(
            f"{name} has no weights that vLLM loads at commit {model.commit} (*.safetensors, *.bin or *.pt): "
            "choose another model or --revision"
        )
    repository = repository_directory(name)
    snapshot = repository / "snapshots" / model.commit
    missing = [file for file in (*model.others, *model.weights) if not os.path.exists(snapshot / file.path)]
    if missing:
        _announce(model, missing, snapshot)
        _check_room(name, repository, missing)
        _download(model, missing)
    else:
        _say(f"{name} is already in {snapshot}")
    if not is_commit(revision):
        _point(repository, revision or "main", model.commit)
    return snapshot


def _download(model: HubModel, missing: Sequence[HubFile]) -> None:
    """Download the missing files: the weights last, so that whoever finds them may rely on the rest."""
    download = _Download(model, missing)
    try:
        try:
            for part in (model.others, model.weights):
                download.fetch(part)
        finally:
            download.stop()
    except (KeyboardInterrupt, StackError):
        _say(
            f"Stopped: {download.whole} of {len(missing)} files are whole and stay. "
            f"`vllm-stack fetch {model.name} --revision {model.commit}` fetches the rest"
        )
        raise


def _announce(model: HubModel, missing: Sequence[HubFile], snapshot: Path) -> None:
    files = len(model.others) + len(model.weights)
    count = f"{files} files" if len(missing) == files else f"{len(missing)} of {files} files"
    _say(f"{model.name} at commit {model.commit}: {count}, {gib(_bytes(missing))}")
    _say(f"Downloading to {snapshot}")


def _bytes(files: Sequence[HubFile]) -> int:
    return sum(file.size or 0 for file in files)


def _check_room(name: str, repository: Path, missing: Sequence[HubFile]) -> None:
    """Raise `MachineError` if the disk of the cache has less room than the download needs."""
    needed = sum(file.size or 0 for file in missing if not _has_blob(repository, file))
    directory = next(path for path in (repository, *repository.parents) if os.path.isdir(path))
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise MachineError(
            f"{name} is a download of {gib(needed)}, and the disk of {directory} has {gib(free)} free: "
            "make room there, or point HF_HOME to a larger disk"
        )


def _has_blob(repository: Path, file: HubFile) -> bool:
    """Tell whether another commit has brought the same content."""
    return bool(file.blob) and os.path.exists(repository / "blobs" / str(file.blob))


def _point(repository: Path, revision: str, commit: str) -> None:
    """Let a branch or tag mean this commit in the cache, also offline, as huggingface_hub does.

    Only now that it is all there: until then it means what it meant.
    """
    references = repository / "refs"
    reference = references / revision
    if references not in Path(os.path.normpath(reference)).parents:
        return
    temporary = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")
    with suppress(OSError):  # a cache that others fill may be read-only, and the commit is named anyhow
        reference.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(commit, "utf-8")
        temporary.replace(reference)


def _result(name: str, snapshot: Path) -> dict[str, str | int]:
    size = sum(path.stat().st_size for path in snapshot.rglob("*") if os.path.isfile(path))
    return {"model": name, "commit": snapshot.name, "path": str(snapshot), "bytes": size}


def _say(line: str) -> None:
    click.echo(line, err=True)


class _Stopped(BaseException):
    """Unwinds a download that is not wanted any more; nothing between here and there catches it."""


class _Download:
    """Downloads files of one model side by side, and tells how far it is.

    The library's own pool waits for files of many GiB on Ctrl-C. Here a download is stopped where it
    reports progress, and one that does not (the hub is silent) is left behind: its thread is a daemon.
    """

    def __init__(self, model: HubModel, missing: Sequence[HubFile]) -> None:
        self._model = model
        self._missing = {file.path for file in missing}
        self._progress = Bar(_bytes(missing)) if sys.stderr.isatty() else Lines(_bytes(missing), _say)
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

    def __init__(self, total: int, say: _Say, clock: Callable[[], float] = time.monotonic) -> None:
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
