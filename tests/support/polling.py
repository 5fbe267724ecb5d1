"""Wait for what must become true, and watch what must stay true; never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Pause = Callable[[float], object]


def until(
    condition: Callable[[], T | None],
    timeout: float,
    what: str,
    every: float = 0.02,
    pause: Pause = time.sleep,
) -> T:
    """Call `condition` until what it returns is true, and return that.

    An exception counts as "not yet". After `timeout` seconds: AssertionError that names `what`
    and the last value or exception. The condition is asked at least once, and once more at the
    deadline, so that a slow machine does not fail what has become true meanwhile. `pause` is
    gevent.sleep where greenlets of the test have to go on.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline
        cause: Exception | None = None
        try:
            value = condition()
        except Exception as error:
            cause, seen = error, f"raised {error!r}"
        else:
            if value:
                return value
            seen = f"was {value!r}"
        if late:
            raise AssertionError(f"not within {timeout:g} s: {what}; at last it {seen}") from cause
        pause(every)


def throughout(
    condition: Callable[[], object],
    seconds: float,
    what: str,
    every: float = 0.02,
    pause: Pause = time.sleep,
) -> None:
    """Call `condition` for `seconds`; AssertionError as soon as it is false. Exceptions pass."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        value = condition()
        if not value:
            raise AssertionError(f"ceased after {passed:.2f} of {seconds:g} s: {what}; it was {value!r}")
        pause(every)
