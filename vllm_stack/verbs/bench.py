"""The verb that measures a stack under load, as the command line spells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vllm_stack.verbs.options import Seconds, option, out_option

_MOST_CLIENTS = 4096


class _Levels(click.ParamType[tuple[int, ...]]):
    """Numbers of clients, with commas between them."""

    name = "levels"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(
            word.isascii() and word.isdecimal() and 1 <= int(word[:9]) <= _MOST_CLIENTS for word in words
        ):
            self.fail(
                f"{value!r} is no list of numbers from 1 to {_MOST_CLIENTS}: 1,4,16", parameter, context
            )
        return tuple(dict.fromkeys(int(word) for word in words))


@click.command()
@out_option
@click.option(
    "--concurrency",
    type=_Levels(),
    default="1,4,16,64",
    show_default=True,
    metavar="N,N,...",
    help="Clients at a time, one level after another. Each asks again as soon as it has its answer.",
)
@click.option(
    "--duration",
    type=Seconds(min=0.1),
    default=6.0,
    show_default=True,
    metavar="SECONDS",
    help="How long requests begin, at each level and each way.",
)
@click.option(
    "--requests", type=click.IntRange(min=1), metavar="N", help="Instead: so many at each level and each way."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, 1_000_000),
    default=128,
    show_default=True,
    metavar="N",
    help="About so many in a prompt.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1_000_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Of each answer; vLLM makes just so many (ignore_eos).",
)
@click.option(
    "--shared-prefix",
    is_flag=True,
    help="Let all prompts begin alike, up to their last tenth. Otherwise no two do, so no cache helps.",
)
@click.option(
    "--slo-ttft",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Goodput: count requests a second whose first token came within this time.",
)
@click.option(
    "--slo-itl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Goodput: and whose mean time between tokens (vLLM calls it TPOT) is within this.",
)
@click.option("--worker", metavar="NAME", help="Ask this worker alone, past the proxy.")
@click.option(
    "--direct/--no-direct",
    default=True,
    show_default=True,
    help="Send the same load straight to the workers, too, and say what the proxy adds.",
)
@click.option("--model", metavar="NAME", help="The model to ask.  [default: the first of the stack]")
@option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with a key the door takes, readable by its owner alone.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw it. Needs matplotlib: pip install 'vllm-stack[bench]'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def bench(api_key_file: Path | None, **settings: Any) -> None:
    """Measure a running stack under load: time to first token, time between tokens, tokens a second.

    It says what it will send before it does; by default that takes about a minute. At every level it asks
    through the door and straight at the workers by turns. Ctrl-C prints what there is by then.
    """
    from vllm_stack.commands.bench import BenchOptions, bench_stack
    from vllm_stack.keys.api_key import check_keys, read_key_file

    keys = check_keys(read_key_file(api_key_file)) if api_key_file else ()
    bench_stack(BenchOptions(key=next(iter(keys), None), **settings))


COMMANDS = (bench,)
