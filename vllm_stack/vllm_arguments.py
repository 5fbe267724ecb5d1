"""What a vLLM command line says of one option, read as vLLM's own parser reads it.

The parser is `FlexibleArgumentParser` in vllm/utils/argparse_utils.py: argparse, which takes any
beginning of a name that fits one option alone, with underscores for dashes and a YAML file.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_stack.errors import UsageError
from vllm_stack.regular_file import read_regular
from vllm_stack.sizes import MIB

# vllm/config/cache.py, vLLM 0.32.
DEFAULT_SHARE = 0.92
AUTO = -1
"""`--max-model-len auto`: as long as the memory allows."""
# A key of a flat YAML file with a plain or a quoted value.
_SETTING = re.compile(
    r"""^(["']?)([A-Za-z][\w-]*)\1[ \t]*:[ \t]+"""
    r"""(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'#][^\n]*?))[ \t]*(?:[ \t]#[^\n]*)?$""",
    re.MULTILINE,
)
# The most (bytes) of a --config that is looked at; vLLM reads longer ones too, but nobody writes them.
_MOST_CONFIG = MIB
# The options of vLLM 0.32 whose whole name begins another's, which argparse never takes for that other:
# all pairs of `vllm_options.known.read_options` were compared.
_WHOLE = frozenset(
    {
        "--chat-template",
        "--config",
        "--data-parallel-size",
        "--grpc",
        "--kv-cache-dtype",
        "--kv-cache-metrics",
        "--long-prefill-token-threshold",
        "--model",
        "--numa-bind",
        "--quantization",
        "--reasoning-parser",
        "--tokenizer",
        "--watermark",
    }
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])", re.ASCII)
_SCALES = {letter: 10**power for letter, power in zip("kmgt", (3, 6, 9, 12), strict=True)} | {
    letter: 2**power for letter, power in zip("KMGT", (10, 20, 30, 40), strict=True)
}
_NULL = ("", "~", "null", "Null", "NULL")


def value_of(argv: Sequence[str], *names: str) -> str | None:
    """Give what vLLM's option with these names (`--dashes`, or `-q`) is set to; None if it is not.

    The last one counts, and those of `--config` come before all others. A beginning of a name counts
    as that name, because vLLM refuses one that fits several, unless it is the whole name of another option:
    `--model` is no `--model-impl`. An option without a value gives the word after it.
    """
    given = None
    for option, value in (*_configured(argv), *_options(argv)):
        if any(_means(option, name) for name in names):
            given = value
    return given


def values_of(argv: Sequence[str], name: str) -> tuple[str, ...]:
    """Give all words of an option that takes several, e.g. --served-model-name; none if it is not set.

    As in `value_of` the last one counts; of `--config` a single value is read.
    """
    given = tuple(value for option, value in _configured(argv) if _means(option, name))[-1:]
    for index, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option.startswith("-") and _means(_dashed(option), name):
            following = itertools.takewhile(lambda later: not later.startswith("-"), argv[index + 1 :])
            given = (value,) if equals else tuple(following)
    return given


def needed_share(argv: Sequence[str]) -> float:
    """Give the share of each GPU that must be free when vLLM starts, by its command line.

    The check (`request_memory` in vllm/v1/worker/utils.py) goes by --gpu-memory-utilization alone:
    --kv-cache-memory-bytes sizes the cache later and changes nothing in it. A value that vLLM
    refuses gives 0: nothing is worth waiting for, so that vLLM says so.
    """
    # Both are one option (vllm/engine/arg_utils.py).
    given = value_of(argv, "--gpu-memory-utilization", "--device-memory-utilization")
    if given is None:
        return DEFAULT_SHARE
    try:
        share = float(given)
    except ValueError:
        return 0.0
    return share if 0 < share <= 1 else 0.0


def parse_length(text: str) -> int:
    """Read `--max-model-len` in tokens as vLLM does ("8k", "32K", "auto"), AUTO for -1 and "auto".

    vllm/utils/argparse_utils.py, human_readable_int_or_auto. Raises `UsageError`.
    """
    if text.strip() == "-1" or text.strip().lower() == "auto":
        return AUTO
    return parse_number(text, "--max-model-len")


def parse_number(text: str, option: str) -> int:
    """Read a number above 0 as vLLM does: 8k is 8000, 8K is 8192, 1.5M is no number, 1.5m is.

    vllm/utils/argparse_utils.py, human_readable_int. Raises `UsageError`.
    """
    try:
        number = _human_number(text.strip())
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r} is not a number: write it like 8192, 8k (8000) or 8K (8192); "
            "only a small letter takes a fraction"
        ) from None
    if number < 1:
        raise UsageError(f"{option} {text!r} must be above 0")
    return number


def _human_number(text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return int(text)
    number, letter = match.groups()
    return int(float(number) * _SCALES[letter]) if letter.islower() else int(number) * _SCALES[letter]


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give each `--option value` and `--option=value`, its name in dashes as vLLM's parser spells it."""
    for index, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option.startswith("-"):
            following = "".join(argv[index + 1 : index + 2])
            yield _dashed(option), value if equals else following


def _configured(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give the settings in the file of `--config`, for which vLLM knows this one spelling.

    A file that cannot be read is left to vLLM.
    """
    for word, path in itertools.pairwise(argv):
        if word == "--config":
            with contextlib.suppress(OSError, ValueError):
                for _, key, *values in _SETTING.findall(_read(path)):
                    if (value := "".join(values)) not in _NULL:
                        yield _dashed(f"--{key}"), value


def _read(path: str) -> str:
    """Read a text as `Path.read_text` does, which knows one kind of line end."""
    return read_regular(Path(path), _MOST_CONFIG).decode("utf-8").replace("\r\n", "\n")


def _dashed(option: str) -> str:
    return option.replace("_", "-") if option.startswith("--") else option


def _means(option: str, name: str) -> bool:
    abbreviates = len(option) > len("--") and option.startswith("--") and name.startswith(option)
    return option == name or (abbreviates and option not in _WHOLE)
