"""What every test relies on."""

import os
import resource
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.examples import FACTOR, examples

_DESCRIPTORS = 65_536


@pytest.fixture(scope="session", autouse=True)
def _no_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What vllm-stack keeps from one command to the next is not kept where the user's own is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure() -> None:
    """Have the processes under test find what they find at a terminal; choose examples alike.

    A shell starts its background jobs with SIGINT and SIGQUIT ignored, and that is inherited. So is a wish
    for no bytecode, which a user seldom has. Descriptors are wanted for the ports that are kept reserved
    (`tests.support.ports`) and for very many clients.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Not all of a limit of billions: there are programs that close every descriptor there could be.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, handler)
    # The same examples every time: a run that is red has a reason in what was changed. `make fuzz` wants
    # new ones.
    settings.register_profile("same", derandomize=FACTOR == 1, deadline=None, max_examples=examples(100))
    settings.load_profile("same")
