from collections.abc import Callable
from typing import Any

class Pump:
    straight: bool
    @property
    def moved(self) -> float: ...
    @property
    def passed(self) -> float: ...
    def __init__(
        self,
        source: int,
        sink: int,
        barred: bytes,
        otherwise: Callable[[bytes, int], Any],
        stalled: Callable[[bytes], Any],
    ) -> None: ...
    def __call__(self) -> None: ...
