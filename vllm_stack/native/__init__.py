"""The part in C, which there is where a C compiler was at hand when vllm-stack was installed.

Nothing depends on it but the cost of a streamed event: without it `proxy/relay.py` moves every event
itself. It is compiled by `build.py`. `VLLM_STACK_NATIVE=0` in the environment leaves it out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_stack.native._pump import Pump

SWITCH = "VLLM_STACK_NATIVE"


def _load() -> type[Pump] | None:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from vllm_stack.native._pump import Pump
    except ImportError:
        return None
    return Pump


PUMP = _load()
"""The class, or None."""
