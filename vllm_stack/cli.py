"""The command line: it parses, dispatches, and is the one border where errors become exit codes.

Nothing here imports gevent, vllm or torch: `--help` and `render` answer at once.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import TextIO

import click

from vllm_stack import __version__
from vllm_stack.errors import StackError
from vllm_stack.verbs import balancing, bench, completion, joining, keys, logs, making, operating, running
from vllm_stack.verbs.group import Group, ReaderLeft

# What no file is named for, and what is not our doing: a full disk behind stdout, too many open files.
_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def main() -> None:
    """Run the command line and exit: 0 ok, 1 expected failure, 2 usage, 3 a bug of ours, 130 Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal need not know every letter
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and give its exit code."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see __main__
        result = group.main(argv, prog_name="vllm-stack", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except StackError as error:
        _say(f"vllm-stack: {_one_line(str(error))}")
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        try:
            error.show()
        except OSError:
            _silence(sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except (ReaderLeft, BrokenPipeError):
        # `vllm-stack ... | head`: nothing is wrong, and nothing more can be said.
        _silence(sys.stdout)
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _OF_THE_MACHINE:
            _report_bug(argv)
            return 3
        if error.filename is None:
            _silence(sys.stdout)
        named = "" if error.filename is None else f"{error.filename}: "
        _say(f"vllm-stack: {_one_line(named)}{error.strerror or error}")
        return 1
    except Exception:  # the one catch-all: what gets here is our bug
        _report_bug(argv)
        return 3


def _say(line: str) -> None:
    """Write a line to stderr, unless there is none that takes it."""
    try:
        click.echo(line, err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO | None) -> None:
    """Let what a stream could not be rid of go nowhere: the interpreter would complain of it at its end."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        if stream is not None:
            os.dup2(nowhere.fileno(), stream.fileno())


def _one_line(message: str) -> str:
    return message.replace("\n", "\\n").replace("\r", "\\r")


def _report_bug(argv: list[str]) -> None:
    import platform
    import traceback

    verb = argv[0] if argv else ""
    _say(
        "vllm-stack: this is a bug of ours. Please report it with what follows:\n\n"
        f"vllm-stack {__version__}, Python {platform.python_version()}, {platform.platform()}, {verb!r}\n"
        f"{traceback.format_exc()}"
    )


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 something expected went wrong, 2 usage, 3 a bug of ours, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="vllm-stack")
def group() -> None:
    """N vLLM workers behind one OpenAI-compatible door, held up by supervisord.

    \b
      vllm-stack render MODEL --workers 2
      supervisord -c out/supervisord.conf
    """


for _verbs in (making, running, joining, balancing, logs, operating, bench, keys, completion):
    for _command in _verbs.COMMANDS:
        group.add_command(_command)
