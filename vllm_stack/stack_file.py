"""A stack written down in TOML: the options of `render` by their names, and a table for each model.

    port = 8000

    [[model]]
    model = "Qwen/Qwen3-8B"
    aliases = ["chat"]
    workers = 2
    vllm-args = ["--max-model-len", "8192"]

What the command line or the environment says about the stack comes before the file; what belongs to a
model stands in its table alone.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vllm_stack.errors import StackError, UsageError
from vllm_stack.given import expanded
from vllm_stack.make_options import OF_A_MODEL, make_options
from vllm_stack.options import Options
from vllm_stack.passthrough import accept
from vllm_stack.regular_file import read_regular
from vllm_stack.sizes import MIB

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Options that say what to do with a stack, not what it is.
_NOT_OF_A_STACK = frozenset({"file", "dry_run", "as_json", "as_toml", "help"})
# The files that a stack names: a stack can be written down where they are not.
_FILES = ("api_key_file", "tls_cert", "tls_key", "upstream_key_file")
_TABLES = "model"
# The most (bytes) of a stack file: a thousand models take a fifth of it, and some TOML is slow to read.
_MOST = MIB
_DEFAULTS = {field.name: field.default for field in fields(Options)} | {"model": ""}
_META = "vllm_stack.models"


def file_option(function: _Function) -> _Function:
    """Declare `-f`, which is read before all other options."""
    return click.option(
        "-f",
        "--file",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_read,
        metavar="STACK.TOML",
        envvar="VLLM_STACK_FILE",
        show_envvar=True,
        help="Take the stack, of one model or several, from a file: the options by their names, and a "
        "[[model]] table for each model. --toml prints one.",
    )(function)


def models_of(context: click.Context) -> list[dict[str, Any]]:
    """Give the settings of each model: those of the file, or what the command line says of its one.

    Raises `UsageError` for a model on the command line beside a file, and click's own for none at all.
    """
    tables: list[dict[str, Any]] | None = context.meta.get(_META)
    own = {name: context.params[name] for name in OF_A_MODEL & context.params.keys()}
    if tables is None:
        if own["model"] is None:
            raise click.MissingParameter(ctx=context, param_hint="'MODEL'", param_type="argument")
        return [{"aliases": (), **own}]
    for name, parameter in _parameters(context).items():
        if name in OF_A_MODEL and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{_said(parameter, own[name])} belongs to one model: "
                "with --file it stands in a [[model]] table"
            )
    return tables


def stack_of(context: click.Context) -> dict[str, Any]:
    """Give the settings that the stack has once."""
    return {
        name: value
        for name, value in context.params.items()
        if name not in OF_A_MODEL and name not in _NOT_OF_A_STACK
    }


def as_toml(context: click.Context) -> str:
    """Write down what the command line, the environment and the file say; defaults stay unsaid.

    Keys of clients are left out, and a comment says so. Raises `UsageError` for what cannot be meant; the
    files that are named need not be there.
    """
    import tomli_w

    models = models_of(context)
    for one in make_options(models, **stack_of(context) | dict.fromkeys(_FILES)):
        accept(one.vllm_args)  # above all, no key for vLLM is written down
    said = {
        key: value
        for key, name in _keys(context).items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
        and (value := context.params[name]) not in (None, ())
    }
    secret = said.pop("api-key", None)
    tables = [
        {key: one[name] for key, name in _model_keys(context).items() if one[name] != _DEFAULTS[name]}
        for one in models
    ]
    note = "# --api-key is not written down: put the keys into a file, and name it as api-key-file.\n"
    # tomli_w would write short tables in one line.
    written = (f"\n[[{_TABLES}]]\n{tomli_w.dumps(_plain(table))}" for table in tables)
    return (note if secret else "") + tomli_w.dumps(_plain(said)) + "".join(written)


def _read(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Have click take the file's settings for defaults, and keep its models."""
    if path is None or context.resilient_parsing:
        return path
    document = _load(path)
    tables = document.pop(_TABLES, None)
    context.default_map = {
        name: text
        for name, text, _ in _settings(context, str(path), document, _keys(context), _model_keys(context))
    }
    tables = [tables] if isinstance(tables, dict) else tables
    if not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{path} has no [[{_TABLES}]] table: each model has one, with its name as `model`")
    context.meta[_META] = [
        _model(context, f"{path}, model {number}", table) for number, table in enumerate(tables, 1)
    ]
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        # Some editors begin a file with a byte order mark.
        return tomllib.loads(read_regular(expanded(path), _MOST).decode("utf-8-sig"))
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # also for a number with thousands of digits
        raise UsageError(f"{path} is not TOML: {error}") from None


def _model(context: click.Context, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    keys = _model_keys(context)
    found = {name: _DEFAULTS[name] for name in keys.values()}
    found |= {name: value for name, _, value in _settings(context, where, table, keys, _keys(context))}
    if not found["model"]:
        raise UsageError(f"{where} has no `model`: name a directory, or a model on the hub")
    return found


def _settings(
    context: click.Context,
    where: str,
    table: Mapping[str, Any],
    keys: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> Iterable[tuple[str, Any, Any]]:
    """Give each setting by its name, as the words that the command line would have, and as click reads them.

    Raises `UsageError` for a key or a value that means nothing.
    """
    parameters = _parameters(context)
    seen: dict[str, str] = {}
    for given, value in table.items():
        key = given.replace("_", "-")
        if key not in keys:
            raise UsageError(f"{where}: {_unknown(given, key, keys, elsewhere)}")
        if seen.setdefault(key, given) != given:
            raise UsageError(f"{where}: {seen[key]} and {given} are one option: leave one out")
        name = keys[key]
        text = _words(where, given, name, value, parameters.get(name))
        parameter = parameters.get(name)
        try:
            yield name, text, text if parameter is None else parameter.process_value(context, text)
        except click.BadParameter as error:
            raise UsageError(f"{where}: {given}: {error.message}") from None


def _unknown(given: str, key: str, keys: Mapping[str, str], elsewhere: Mapping[str, str]) -> str:
    if key in elsewhere:
        place = f"into a [[{_TABLES}]] table" if elsewhere[key] in OF_A_MODEL else "above the tables"
        return f"{given!r} belongs {place}"
    near = difflib.get_close_matches(key, [*keys, *elsewhere, _TABLES], 1)
    return f"{given!r} is no option of `vllm-stack render`" + (f": did you mean {near[0]!r}?" if near else "")


def _words(where: str, given: str, name: str, value: Any, parameter: click.Parameter | None) -> Any:
    """Spell a value as the command line would: a word, or several where several are taken."""
    several = parameter is None or parameter.multiple or parameter.nargs == -1
    values = value if isinstance(value, list) else [value]
    if any(isinstance(one, list | dict) for one in values):
        takes = "a list of words" if several or name == "gpus" else "one value"
        raise UsageError(f"{where}: {given} takes {takes}")
    if name == "vllm_args" and not isinstance(value, list):
        raise UsageError(f'{where}: {given} takes a list of words, e.g. ["--max-model-len", "8192"]')
    try:
        words = tuple(str(one).lower() if isinstance(one, bool) else str(one) for one in values)
    except ValueError:
        raise UsageError(f"{where}: {given} has a number with thousands of digits") from None
    if any("\0" in word for word in words):
        raise UsageError(f"{where}: {given} has a NUL byte, which no command line can carry")
    if several:
        return words
    if name == "gpus":
        return ",".join(words)
    if isinstance(value, list):
        raise UsageError(f"{where}: {given} takes one value, not a list")
    return words[0]


def _parameters(context: click.Context) -> dict[str, click.Parameter]:
    return {str(parameter.name): parameter for parameter in context.command.params}


def _keys(context: click.Context) -> dict[str, str]:
    """Give the keys above the tables, and the settings that they are."""
    return {
        parameter.opts[0].removeprefix("--"): name
        for name, parameter in _parameters(context).items()
        if name not in OF_A_MODEL and name not in _NOT_OF_A_STACK
    }


def _model_keys(context: click.Context) -> dict[str, str]:
    """Give the keys of a [[model]] table, and the settings that they are."""
    options = {
        parameter.opts[0].removeprefix("--"): name
        for name, parameter in _parameters(context).items()
        if name in OF_A_MODEL and isinstance(parameter, click.Option)
    }
    return {"model": "model", "aliases": "aliases", **options, "vllm-args": "vllm_args"}


def _said(parameter: click.Parameter, value: Any) -> str:
    if isinstance(parameter, click.Option):
        return parameter.opts[0]
    # Without MODEL click takes the first word after `--` for it.
    return "MODEL" if parameter.name == "model" and not value.startswith("-") else "What follows `--`"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
