"""Text of others on a terminal: what would move the cursor, or the words, is shown and not done."""

from __future__ import annotations

import re

# Colours and the like (ECMA-48 SGR) say nothing and are left out.
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_HARMLESS = "\t\u00a0\u3000"


def printable(text: str) -> str:
    """Give `text` without colours, and with every character that is not to be printed spelled out.

    Those are control characters, and also what turns the direction of writing: both can make a line
    look like another one.
    """
    text = _COLOURS.sub("", text)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _HARMLESS else _spelled(one) for one in text)


def _spelled(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")
