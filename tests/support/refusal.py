"""A command line that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack import cli


def assert_refused(
    home: Path, capfd: pytest.CaptureFixture[str], args: list[str], code: int
) -> tuple[str, str]:
    """Run it in this process: the exit code, nothing on stdout, no traceback, nothing written in `home`.

    Gives the last line of stderr, and all of it.
    """
    before = sorted(home.rglob("*"))
    assert cli.run(args) == code
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert "Traceback" not in stderr
    assert sorted(home.rglob("*")) == before
    whole = stderr.strip()
    return whole.splitlines()[-1], whole
