from __future__ import annotations

from tests.integration.proxy.conftest import new_stack

__all__ = ["new_stack"]
