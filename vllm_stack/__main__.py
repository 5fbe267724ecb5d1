"""Run the command line, as `vllm-stack` or as `python -m vllm_stack`."""

import signal

# A Ctrl-C while the rest is imported must not answer with a traceback: nothing was begun, so the
# signal ends us by itself. `cli.run` takes it over. One that was ignored before us stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from vllm_stack.cli import main

if __name__ == "__main__":
    main()
