"""Become the proxy under supervisord: `python -m vllm_stack.proxy proxy.json gunicorn.conf.py`.

This process makes sure that it may start and that no earlier proxy holds the port, then turns
into gunicorn's master: one process, and nothing in between to pass signals through.
"""

from __future__ import annotations

# Before any other import: a stop that comes from here on waits until it can be heeded.
from vllm_stack.program import (
    Order,
    ask_supervisord,
    block_signals,
    die_with_parent,
    take_signal,
    unblock_signals,
)

block_signals()

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from vllm_stack.errors import StackError  # noqa: E402
from vllm_stack.layout import Layout, life_record  # noqa: E402
from vllm_stack.leftovers.processes import MARKER, Identity, sweep  # noqa: E402
from vllm_stack.program import STOP_SIGNALS  # noqa: E402
from vllm_stack.proxy.hooks import SETTINGS_VARIABLE, check_settings  # noqa: E402
from vllm_stack.records.in_force import VARIABLE, options_in_force  # noqa: E402


def main(argv: list[str]) -> int:
    """Exec gunicorn; gives an exit code only when that is not to be."""
    # supervisord killed hard means a graceful stop for gunicorn; the setting survives the exec.
    die_with_parent(signal.SIGTERM)
    environ = dict(os.environ)
    if ask_supervisord(environ) is not Order.RUN or take_signal(0) in STOP_SIGNALS:
        return 0
    try:
        layout = Layout(Path(argv[1]).parent)
        rendered = [Path(argv[1]), Path(argv[2]), layout.stack_json]
        settings, config, _ = options_in_force(rendered, layout.state, "proxy", environ.get(VARIABLE))
        check_settings(settings)
        raw = json.loads(settings.read_text("utf-8"))
        identity = Identity(raw["title"], Path(raw["box"]), life_record(layout.state, "proxy"))
        sweep(identity, _say)
        identity.record_life()
        os.chdir(raw["box"])
    except StackError as error:
        _say(f"cannot start: {error}")
        return 1
    except (IndexError, OSError, ValueError, KeyError) as error:
        _say(f"cannot start: {error!r}")
        return 1
    if take_signal(0) in STOP_SIGNALS:
        return 0
    environ |= {SETTINGS_VARIABLE: str(settings), MARKER: raw["title"]}
    unblock_signals()
    os.execve(  # noqa: S606 - the one program we are here to become
        sys.executable,
        [sys.executable, "-P", "-m", "vllm_stack.proxy.master", "--config", str(config)],
        environ,
    )


def _say(text: str) -> None:
    print(f"vllm-stack proxy: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
