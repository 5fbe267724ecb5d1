"""The files of the page: read once, so that a page and what it asks for are of one version."""

from __future__ import annotations

from pathlib import Path

from vllm_stack.proxy.admin_answer import Answer

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PLACE = Path(__file__).parent / "page"


def read_files() -> dict[str, Answer]:
    """Give every file of the page by the path it is asked for at; raises `OSError`."""
    files = {f"/dashboard/{path.name}": path for path in sorted(_PLACE.iterdir()) if path.suffix in _TYPES}
    answers = {target: Answer(path.read_bytes(), _TYPES[path.suffix]) for target, path in files.items()}
    return {"/": answers.pop("/dashboard/index.html"), **answers}
