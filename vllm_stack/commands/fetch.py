"""`vllm-stack fetch`: download a model once, at one commit, before N workers race for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from vllm_stack.commands.download import Download, bytes_of
from vllm_stack.errors import HubError, MachineError, StackError, UsageError
from vllm_stack.given import check_text, expanded
from vllm_stack.model.hub import HubFile, HubModel, ask_hub, offline
from vllm_stack.model.hub_cache import find_snapshot, is_commit, is_whole, repository_directory
from vllm_stack.sizes import gib

# How long (seconds) the hub may take to say what there is.
_PATIENCE = 30.0


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
    download = Download(model, missing, _say)
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
    _say(f"{model.name} at commit {model.commit}: {count}, {gib(bytes_of(missing))}")
    _say(f"Downloading to {snapshot}")


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
