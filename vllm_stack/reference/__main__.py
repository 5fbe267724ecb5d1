"""Write the pages that the code knows by itself: `python -m vllm_stack.reference docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_stack.reference import causes, verbs


def main() -> None:
    """Write them into the directory that is named."""
    (directory,) = map(Path, sys.argv[1:])
    (directory / "cli.md").write_text(verbs.reference(), "utf-8")
    (directory / "causes.md").write_text(causes.reference(), "utf-8")


if __name__ == "__main__":
    main()
