"""How many examples a test with made-up input takes: so many, or with `make fuzz` many times that."""

from __future__ import annotations

import os

# Of `make fuzz`; 1 where a run is to be the same every time.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))


def examples(number: int) -> int:
    """Give how many examples a test takes that is content with `number`."""
    return number * FACTOR
