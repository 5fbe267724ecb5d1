"""Run one worker under supervisord: `python -m vllm_stack.worker worker-N.json`."""

from __future__ import annotations

# Before any other import: from here on no stop signal can be lost. Until this line the default
# action ends us, which is right, because nothing was started.
from vllm_stack.program import adopt_orphans, block_signals, die_with_parent

block_signals()

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from vllm_stack.layout import Layout  # noqa: E402
from vllm_stack.records.in_force import VARIABLE, options_in_force  # noqa: E402
from vllm_stack.worker.life import Life  # noqa: E402
from vllm_stack.worker.spec import read_spec  # noqa: E402


def main(argv: list[str]) -> int:
    """Live one life of the worker that `argv[1]` describes; gives the exit code."""
    # supervisord killed hard means a normal stop for us, and with us for the whole tree.
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    environ = dict(os.environ)
    try:
        rendered = Path(argv[1])
        state = Layout(rendered.parent).state
        (path,) = options_in_force([rendered], state, rendered.stem, environ.get(VARIABLE))
        spec = read_spec(path)
    except (IndexError, OSError, ValueError) as error:
        print(f"vllm-stack worker: {error}", file=sys.stderr)
        return 1
    return Life(spec, environ).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
