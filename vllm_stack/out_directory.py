"""Whether a directory may become, or is, a stack's: everything in it is ours, and only we may enter it."""

from __future__ import annotations

import contextlib
import json
import os

from vllm_stack.errors import OutputError
from vllm_stack.layout import Layout


def check_out(layout: Layout) -> None:
    """Raise `OutputError` for a directory of somebody else's, or one that could not be made.

    A render makes the directory private and writes over files: a mistyped --out must not do that to a
    home directory, or to /.
    """
    out = layout.out
    parent = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not os.path.isdir(parent):
        raise OutputError(f"--out {out} cannot be a directory: {parent} is a file")
    if parent != out:
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"--out {out} cannot be made: {parent} may not be written to by this user")
        return
    try:
        present = set(os.listdir(out))
    except OSError as error:
        raise OutputError(f"--out {out} cannot be read: {error.strerror}") from None
    if present and not _is_ours(layout, present):
        raise OutputError(f"--out {out} is not empty, and no stack is in it: name a new directory")


def _is_ours(layout: Layout, present: set[str]) -> bool:
    """Tell a stack, or what a render that was broken off has left of one."""
    with contextlib.suppress(OSError, ValueError):
        stack = json.loads(layout.stack_json.read_text("utf-8"))
        return isinstance(stack, dict) and {"door", "workers"} <= set(stack)
    own = {path.name for path in layout.directories if path.parent == layout.out}
    unfinished = {name for name in present if name.startswith(".")}
    return layout.secrets.name in present and present - unfinished <= own
