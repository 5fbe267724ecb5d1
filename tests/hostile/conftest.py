from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.integration.proxy.conftest import new_stack

__all__ = ["new_stack"]


@pytest.fixture(scope="session", autouse=True)
def _many_descriptors() -> Iterator[None]:
    """As many descriptors as the system allows, for the clients and for the proxy that is started here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
