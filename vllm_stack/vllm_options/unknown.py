"""Which words after `--` vLLM's parser would refuse, and what was perhaps meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_MANY = 4


def unknown_options(args: Sequence[str], known: frozenset[str]) -> tuple[tuple[str, str | None], ...]:
    """Give each option among `args` that a parser of the `known` ones refuses, with the nearest known one.

    The rules are those of FlexibleArgumentParser.parse_args (vllm/utils/argparse_utils.py), which
    takes underscores for dashes, `--option.key value` and `-O3`, and below it of argparse's
    _parse_optional and _get_option_tuples: an unambiguous beginning of an option stands for it. An
    ambiguous one is given with the options it may stand for. Values are not looked at.
    """
    if "--omni" in args:
        # Another program takes the whole command line (vllm/entrypoints/cli/main.py, maybe_run_omni).
        return ()
    known = frozenset(map(_canonical, known))
    unknown: dict[str, str | None] = {}
    takes_next = False
    for index, word in enumerate(args):
        if word == "--":
            break
        if takes_next or not _is_option(word):
            takes_next = False
            continue
        key, equals, _ = word.partition("=")
        typed, dot, path = key.partition(".")
        # The parser cuts `--option.key` and the word after it out, whatever that word looks like.
        takes_next = bool(dot and not equals)
        if _is_optimization_level(word, args[index + 1 : index + 2], known):
            continue
        name = _canonical(typed)
        meant = _may_stand_for(name, known)
        if len(meant) == 1:
            continue
        nearest = _either(meant) if meant else _nearest(name, known)
        unknown[key] = f"{nearest}{dot}{path}" if nearest and not meant else nearest
    return tuple(unknown.items())


def refusal(unknown: Sequence[tuple[str, str | None]], version: str | None) -> str:
    """Say in one sentence which options this vLLM does not have, what was perhaps meant, and the way out."""
    subject = f"vLLM {version}" if version else "This vLLM"
    if len(unknown) == 1:
        ((option, nearest),) = unknown
        meant = f": did you mean {nearest}?" if nearest else ""
        return f"{subject} has no option {option!r}{meant} (--skip-check vllm-options passes it on as it is)"
    named = [repr(option) + (f" (did you mean {meant}?)" if meant else "") for option, meant in unknown]
    return (
        f"{subject} has no options {', '.join(named[:-1])} and {named[-1]} "
        "(--skip-check vllm-options passes them on as they are)"
    )


def _is_option(word: str) -> bool:
    """Tell whether argparse would take a word for an option: not `-`, a number, or a text with spaces.

    A text with spaces that begins like `--option=` is one that was meant, though argparse calls it
    a value and vLLM then an argument too many.
    """
    if len(word) < 2 or not word.startswith("-") or _is_number(word):
        return False
    key = word.partition("=")[0]
    return " " not in word or (word.startswith("--") and " " not in key and key != word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_optimization_level(word: str, following: Sequence[str], known: frozenset[str]) -> bool:
    """`-O3`, `-O=3` and `-O 3`, which the parser rewrites; older ones meant --compilation-config by it."""
    if not word.startswith("-O") or known.isdisjoint({"--optimization-level", "--compilation-config"}):
        return False
    return word != "-O" or (bool(following) and following[0] in ("0", "1", "2", "3"))


def _canonical(option: str) -> str:
    return "--" + option[2:].replace("_", "-") if option.startswith("--") else option


def _may_stand_for(name: str, known: frozenset[str]) -> list[str]:
    if name in known:
        return [name]
    meant = {option for option in known if option.startswith(name)}
    if not name.startswith("--") and name[:2] in known:
        # `-n2` is `-n 2`, but only options of one letter take their value like that.
        meant.add(name[:2])
    return sorted(meant, key=lambda option: (len(option), option))


def _either(options: Sequence[str]) -> str:
    """Name a few options as alternatives."""
    named = list(options[:_MANY]) if len(options) <= _MANY else [*options[: _MANY - 1], "another"]
    return f"{', '.join(named[:-1])} or {named[-1]}"


def _nearest(name: str, known: frozenset[str]) -> str | None:
    """Find the known option that was perhaps meant: by its letters, then by its words."""
    name = name.lower()
    turned = name.replace("--disable-", "--no-enable-", 1)
    if turned in known:
        return turned
    single = not name.startswith("--")
    if single and len(name) > len("-dpn") + 1:
        return f"-{name}" if f"-{name}" in known else _nearest(f"-{name}", known)
    alike = sorted(option for option in known if option.startswith("--") is not single)
    if close := get_close_matches(name, alike, n=1, cutoff=0.6 if single else 0.8):
        return close[0]
    words = set(name.split("-")) - {""}
    holding = [option for option in alike if words and words <= set(option.split("-"))]
    if 0 < len(holding) < _MANY:
        return min(holding, key=len)
    return next(iter(get_close_matches(name, alike, n=1, cutoff=0.7)), None)
