from __future__ import annotations

from tests.integration.proxy.conftest import scripted, shared_scripted, shared_stack, stack

__all__ = ["scripted", "shared_scripted", "shared_stack", "stack"]
