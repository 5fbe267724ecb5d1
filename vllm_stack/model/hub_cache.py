"""What of the hub is on this machine: the local cache, in the layout of huggingface_hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vllm_stack.given import absolute
from vllm_stack.model.hub_files import INDEXES, counted_shards, read_shards, weight_set
from vllm_stack.regular_file import read_regular

CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a reference holds, and what can be the name of a directory: commits, also shortened ones.
_SNAPSHOT = re.compile(r"[0-9A-Za-z_-]{1,64}")
# The most (bytes) of a reference, which holds one commit.
_MOST_REFERENCE = 4096


def cache_directory() -> Path:
    """Give the directory of the hub's cache (huggingface_hub, `constants.py`, HF_HUB_CACHE)."""
    general = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = _expanded(os.environ.get("HF_HOME", os.path.join(general, "huggingface")))
    older = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    directory = _expanded(os.environ.get("HF_HUB_CACHE", older))
    try:
        return Path(os.path.realpath(directory))
    except OSError:
        # A link that may not be read, such as /proc/1/root: what is there will be said by who uses it.
        return absolute(directory)


def repository_directory(name: str) -> Path:
    """Give the directory of a model in the cache, whether there is one or not."""
    return cache_directory() / f"models--{name.replace('/', '--')}"


def find_snapshot(name: str, revision: str | None) -> Path | None:
    """Find the snapshot of a hub name in the local cache, whatever is in it.

    Its name is the commit. It may be one that a broken-off download left: see `is_whole`.
    """
    repository = repository_directory(name)
    try:
        commit = _read_reference(repository / "refs" / (revision or "main"))
    except (OSError, ValueError):
        commit = revision or ""
    if not _SNAPSHOT.fullmatch(commit):
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if os.path.isdir(snapshot) else None


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is a commit, which never moves, and not a branch or a tag."""
    return bool(revision and _COMMIT.fullmatch(revision))


def is_whole(snapshot: Path) -> bool:
    """Tell whether a snapshot holds all the weights that vLLM would load.

    A link appears only when its file is whole, so the names tell it. The shards that an index names,
    or that count themselves ("-00001-of-00003"), must all be there. Left over *.incomplete files say
    nothing: huggingface_hub never comes back to those of a process that was killed.
    """
    try:
        present = {entry.name for entry in os.scandir(snapshot) if entry.is_file()}
    except OSError:
        return False
    pattern, files = weight_set(present)
    shards = read_shards(snapshot / INDEXES[pattern]) if INDEXES.get(pattern) in present else frozenset()
    if shards is None:
        return False
    if shards:
        return all(os.path.isfile(snapshot / shard) for shard in shards)
    return bool(files) and all(counted_shards(file) <= present for file in files)


def _read_reference(reference: Path) -> str:
    return read_regular(reference, _MOST_REFERENCE).decode("utf-8").strip()


def _expanded(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))
