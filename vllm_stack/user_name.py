"""Who runs this, for whoever reads of it later."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """Name the user; one without an entry in the passwd file has a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
