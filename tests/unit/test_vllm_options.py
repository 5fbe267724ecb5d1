"""Options that the installed vLLM does not have are found in its sources, and named with the nearest one."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.vllm_options.known import RENDERED, read_options
from vllm_stack.vllm_options.package import find_package
from vllm_stack.vllm_options.program import parse_help
from vllm_stack.vllm_options.sources import read_sources
from vllm_stack.vllm_options.unknown import refusal, unknown_options

KNOWN = RENDERED | {
    "--additional-config",
    "--api-key",
    "--compilation-config",
    "--enable-log-requests",
    "--enable-lora",
    "--gpu-memory-utilization",
    "--max-lora-rank",
    "--no-enable-log-requests",
    "--no-enable-lora",
    "--optimization-level",
    "--served-model-name",
    "-cc",
    "-dcp",
    "-dp",
    "-h",
    "-n",
    "-q",
    "-tp",
    "--help",
}


@pytest.mark.parametrize(
    ("args", "unknown"),
    [
        (("--max-modle-len", "8"), ("--max-modle-len", "--max-model-len")),
        (("--max_modle_len=8",), ("--max_modle_len", "--max-model-len")),
        (("--Max-Model-Len", "8"), ("--Max-Model-Len", "--max-model-len")),
        (("-max-model-len", "8"), ("-max-model-len", "--max-model-len")),
        (("--max-model-length", "8"), ("--max-model-length", "--max-model-len")),
        (("--lora-rank", "8"), ("--lora-rank", "--max-lora-rank")),
        (("--eager",), ("--eager", "--enforce-eager")),
        (("--disable-log-requests",), ("--disable-log-requests", "--no-enable-log-requests")),
        (("--task", "embed"), ("--task", None)),
        (("--compilation-confg.a.b", "3"), ("--compilation-confg.a.b", "--compilation-config.a.b")),
        (('--additional-confg={"a": 1}',), ("--additional-confg", "--additional-config")),
        (("--additional-config+", "a"), ("--additional-config+", "--additional-config")),
        (("-tp2",), ("-tp2", "-tp")),
        (("-O", "9"), ("-O", None)),
        (("--enable-lo",), ("--enable-lo", "--enable-lora or --enable-log-requests")),
        (("-d", "2"), ("-d", "-dp or -dcp")),
        (("--seed", "-x"), ("--seed", None)),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_known_one(
    args: tuple[str, ...], unknown: tuple[str, str | None]
) -> None:
    assert unknown_options(args, KNOWN)[0] == unknown


@pytest.mark.parametrize(
    "args",
    [
        ("--max-model-len", "-1"),
        ("--max-model-len=-1", "-0.5", "-1e5", "-"),
        ("-tp", "2", "-tp=2", "-n2", "-qfp8"),
        ("-O3", "-O=3", "-O", "3", "-O.mode", "3"),
        ("-cc.mode", "3", "-cc.pass.x=true", "--compilation-config.sizes+", "1,2"),
        ("--compilation-config.x", "--not-an-option"),
        ("--compilation_config.some_key", "-x"),
        ("--gpu", "0.5", "--compil.level", "3"),
        ("--api-key", "- a text that is not --meant for=us", "a", "--", "--no-option"),
        ("--omni", "--an-option-of-omni"),
    ],
)
def test_what_the_parser_takes_is_not_refused(args: tuple[str, ...]) -> None:
    assert unknown_options(args, KNOWN) == ()


def test_the_value_of_a_dotted_option_ends_with_one_word() -> None:
    args = ("--compilation-config.x", "-y", "-y", "--compilation-config.x=1", "--z")
    assert [option for option, _ in unknown_options(args, KNOWN)] == ["-y", "--z"]


def test_every_unknown_option_is_given_once_and_in_order() -> None:
    args = ("--zz", "1", "--max-model-len", "2", "--aa", "--zz=3")
    assert unknown_options(args, KNOWN) == (("--zz", None), ("--aa", None))


def test_many_meanings_are_not_all_listed() -> None:
    ((_, meant),) = unknown_options(("--e",), KNOWN | {"--eplb-config"})
    assert meant == "--enable-lora, --eplb-config, --enforce-eager or another"


WORD = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6)
LONG = st.lists(WORD, min_size=1, max_size=4).map(lambda words: "--" + "-".join(words))
SHORT = st.text(string.ascii_lowercase, min_size=1, max_size=3).map("-{}".format)


@given(st.frozensets(LONG | SHORT, min_size=1, max_size=30), st.data())
def test_no_way_to_write_a_known_option_is_refused(known: frozenset[str], data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(sorted(known)))
    begin = data.draw(st.integers(2, len(option)).map(lambda length: option[:length]))
    if sum(name.startswith(begin) for name in known) == 1 and begin not in known and begin != "--":
        # A short one of one letter takes what follows for its value.
        option = begin if begin.startswith("--") or begin[:2] not in known else option
    if option.startswith("--") and data.draw(st.booleans()):
        option = "--" + option[2:].replace("-", "_")
    ending = data.draw(st.sampled_from([[""], ["=x"], ["=-x=y"], [".a.b", "-x"], [".a=-1"], [".a+", "--x"]]))
    assert unknown_options([option + ending[0], *ending[1:]], known) == ()


@given(st.lists(st.text(max_size=12), max_size=8), st.frozensets(LONG | SHORT, max_size=10))
def test_any_words_are_judged_and_what_is_refused_was_among_them(
    args: list[str], known: frozenset[str]
) -> None:
    for option, nearest in unknown_options(args, known):
        assert option.startswith("-")
        assert any(word.startswith(option) for word in args)
        assert refusal([(option, nearest)], None)


def test_the_refusal_is_one_sentence_with_the_way_out() -> None:
    assert refusal([("--max-modle-len", "--max-model-len")], "0.32.0") == (
        "vLLM 0.32.0 has no option '--max-modle-len': did you mean --max-model-len? "
        "(--skip-check vllm-options passes it on as it is)"
    )
    assert refusal([("--task", None)], None) == (
        "This vLLM has no option '--task' (--skip-check vllm-options passes it on as it is)"
    )
    assert refusal([("--a", "--b"), ("--c", None), ("--d", "--e")], "1") == (
        "vLLM 1 has no options '--a' (did you mean --b?), '--c' and '--d' (did you mean --e?) "
        "(--skip-check vllm-options passes them on as they are)"
    )


SERVE = """
import torch_is_not_here
from vllm.launch.cli_args import make_arg_parser

class ServeSubcommand(CLISubcommand):
    def subparser_init(self, subparsers):
        serve_parser = subparsers.add_parser("serve", help="--not-an-option")
        serve_parser = make_arg_parser(serve_parser)
        return serve_parser
"""
CLI_ARGS = """
from typing import TYPE_CHECKING
from ..engine.arg_utils import AsyncEngineArgs as Engine
if TYPE_CHECKING:
    from vllm.config import Level

@config
class Base:
    host: str | None = None
    port: int = 8000
    uds: str | None = None
    enable_server_load_tracking: bool = False
    input_file: str = ""
    limit: ClassVar[int] = 3

    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["input_file"]["flags"] = ["-i"]

    @classmethod
    def add_cli_args(cls, parser):
        from vllm.engine.arg_utils import get_kwargs
        frontend_kwargs = get_kwargs(cls)
        for key, value in frontend_kwargs.items():
            frontend_group.add_argument(*extra_flags, f"--{key.replace('_', '-')}", **value)
        return parser

@config
class Frontend(Base):
    disable_uvicorn_access_log: "bool" = False
    level: Level = "info"

def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--headless", "-hl", action="store_true")
    parser = Frontend.add_cli_args(parser)
    return Engine.add_cli_args(parser)
"""
ARG_UTILS = """
from vllm.config import ModelConfig, VllmConfig

class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        model_kwargs = get_kwargs(ModelConfig)
        group = parser.add_argument_group(title="ModelConfig")
        if not ("serve" in sys.argv[1:]):
            group.add_argument("--model", **model_kwargs["model"])
        group.add_argument("--revision", **model_kwargs["revision"])
        group.add_argument("--served-model-name", nargs="+")
        group.add_argument("--max-model-len", **{**model_kwargs["max_model_len"], "default": None})
        group.add_argument("--enforce-eager", **model_kwargs["enforce_eager"])
        group.add_argument("--maybe", "-m", **model_kwargs["maybe"])
        group.add_argument("--aliased", **{**model_kwargs["aliased"], "default": None})
        group.add_argument("--annotated", **model_kwargs["annotated"])
        group.add_argument("--hf-token", **model_kwargs["hf_token"])
        group.add_argument("--flags-of-names", **model_kwargs["flags_of_names"])
        group.add_argument("--inherited", **model_kwargs["inherited"])
        group.add_argument("--unclear", **computed())
        group.add_argument("--stored", action="store_true", **model_kwargs["enforce_eager"])
        group.add_argument("--lora", action=argparse.BooleanOptionalAction)
        group.add_argument("--tensor-parallel-size", "-tp", type=int)
        group.add_argument("--kv-cache-memory-bytes", "--shutdown-timeout", type=int)
        one = get_kwargs(VllmConfig)["fast"]
        group.add_argument("--fast", **one)
        other = model_kwargs["model"]
        group.add_argument("--other", **other)
        return parser

class AsyncEngineArgs(EngineArgs):
    @staticmethod
    def add_cli_args(parser, async_args_only=False):
        load_general_plugins()
        if not async_args_only:
            parser = EngineArgs.add_cli_args(parser)
        parser.add_argument("--enable-log-requests", action=argparse.BooleanOptionalAction)
        current_platform.pre_register_and_update(parser)
        return parser
"""
CONFIG = """
from .model import ModelConfig, Level
from vllm.config.model import VllmConfig
"""
MODEL = """
Level = Literal["info", "debug"]
Switch = Union[bool, None]

class Parent:
    inherited: Optional[bool] = None

class ModelConfig(Parent):
    model: str = "x"
    revision: str | None = None
    max_model_len: int = 0
    enforce_eager: bool = False
    maybe: bool | None = None
    aliased: Switch = None
    annotated: Annotated[bool, Field()] = False
    hf_token: bool | str | None = None
    flags_of_names: dict[str, bool] | None = None

class VllmConfig:
    fast: SkipValidation[bool] = True
"""
WITH_NO = {
    "annotated",
    "aliased",
    "disable-uvicorn-access-log",
    "enable-log-requests",
    "enable-server-load-tracking",
    "enforce-eager",
    "fast",
    "inherited",
    "lora",
    "maybe",
    "unclear",
}
WITHOUT_NO = {
    "flags-of-names",
    "headless",
    "help",
    "hf-token",
    "host",
    "input-file",
    "kv-cache-memory-bytes",
    "level",
    "max-model-len",
    "model",
    "other",
    "port",
    "revision",
    "served-model-name",
    "shutdown-timeout",
    "stored",
    "tensor-parallel-size",
    "uds",
}
OPTIONS = frozenset(
    {f"--{name}" for name in WITH_NO | WITHOUT_NO}
    | {f"--no-{name}" for name in WITH_NO}
    | {"-h", "-hl", "-i", "-m", "-tp"}
)


def write_package(root: Path, **changes: str) -> Path:
    """Write a small vLLM whose options are laid out as the real one's."""
    files = {
        "__init__.py": "raise ImportError('nobody imports this')",
        "entrypoints/cli/serve.py": SERVE,
        "launch/__init__.py": "",
        "launch/cli_args.py": CLI_ARGS,
        "engine/arg_utils.py": ARG_UTILS,
        "config/__init__.py": CONFIG,
        "config/model.py": MODEL,
        **changes,
    }
    for name, text in files.items():
        path = root / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "vllm"


def write_environment(prefix: Path, packages: str = "lib/python3.12/site-packages") -> tuple[Path, Path]:
    """Write an environment without vLLM; give its `vllm` program and its directory of packages."""
    program = prefix / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{prefix}/bin/python\nimport sys\nfrom vllm.entrypoints.cli.main import main\n")
    (prefix / packages).mkdir(parents=True)
    return program, prefix / packages


def never(line: str) -> None:
    raise AssertionError(line)


def test_the_options_are_read_without_importing_anything(tmp_path: Path) -> None:
    assert read_sources(write_package(tmp_path)) == OPTIONS


@pytest.mark.parametrize(
    "changes",
    [
        {"entrypoints/cli/serve.py": "def main(): pass"},
        {"entrypoints/cli/serve.py": "class ServeSubcommand:\n    x = 1"},
        {"engine/arg_utils.py": "class ("},
        {"config/model.py": "x = '\0'"},
        {"launch/cli_args.py": "x = " + "(" * 500},
    ],
)
def test_sources_that_cannot_be_read_give_none(tmp_path: Path, changes: dict[str, str]) -> None:
    assert read_sources(write_package(tmp_path, **changes)) is None


def test_names_and_classes_that_lead_in_circles_end(tmp_path: Path) -> None:
    circles = MODEL.replace("Union[bool, None]", "Switch | None").replace(
        "class Parent:", "class Parent(Parent):"
    )
    config = "from vllm.config import Level\nfrom vllm.config.model import ModelConfig, VllmConfig"
    package = write_package(tmp_path, **{"config/model.py": circles, "config/__init__.py": config})
    assert read_sources(package) == OPTIONS - {"--no-aliased"}


def test_the_sources_beside_the_program_answer_and_nobody_is_asked(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path / "venv")
    write_package(packages)
    assert read_options(program, [str(program)], "1", never, cache=tmp_path / "cache") == OPTIONS
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "packages",
    ["lib/python3.12/site-packages", "lib/python3.12/dist-packages", "lib64/python3.12/site-packages"],
)
def test_the_package_is_found_in_every_layout(tmp_path: Path, packages: str) -> None:
    program, directory = write_environment(tmp_path, packages)
    assert find_package(program, [str(program)]) is None
    package = write_package(directory)
    assert find_package(program, [str(program)]) == package


def test_the_package_is_found_through_a_link_and_through_the_first_line(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path / "tools" / "vllm")
    package = write_package(packages)
    home = tmp_path / "home" / "bin"
    home.mkdir(parents=True)
    (home / "vllm").symlink_to(program)
    (home / "copy").write_bytes(program.read_bytes())
    assert find_package(home / "vllm", [str(home / "vllm")]) == package
    assert find_package(home / "copy", [str(home / "copy")]) == package


def test_the_package_of_an_interpreter_is_that_of_its_environment(tmp_path: Path) -> None:
    _, base = write_environment(tmp_path / "usr")
    program, packages = write_environment(tmp_path / "venv")
    (base_python := tmp_path / "usr" / "bin" / "python").touch()
    (python := program.with_name("python")).symlink_to(base_python)
    of_base = write_package(base)
    command = [str(python), "-m", "vllm.entrypoints.cli.main"]
    assert find_package(python, command) == of_base
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert find_package(python, command) is None
    package = write_package(packages)
    assert find_package(python, command) == package
    assert find_package(python, [str(python), "-m", "another"]) is None
    assert find_package(python, [str(python), "-m"]) is None
    assert find_package(python, [str(python), "/opt/serve.py"]) is None


def test_a_program_that_is_not_vllms_own_script_is_not_judged_by_the_vllm_beside_it(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path)
    write_package(packages)
    program.write_text('#!/bin/sh\nexec /opt/vllm/bin/vllm "$@" --more\n')
    assert find_package(program, [str(program)]) is None
    assert find_package(tmp_path / "missing", [str(tmp_path / "missing")]) is None


def test_two_vllms_in_one_environment_are_not_guessed_between(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path)
    write_package(packages)
    write_package(tmp_path / "lib/python3.13/site-packages")
    assert find_package(program, [str(program)]) is None


def test_an_editable_install_leads_to_its_sources(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path / "venv")
    package = write_package(tmp_path / "my sources")
    info = packages / "vllm-0.33.dev0.dist-info"
    info.mkdir()
    url = {"url": f"file://{tmp_path}/my%20sources", "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    assert find_package(program, [str(program)]) == package
    (info / "direct_url.json").write_text('{"url": 3, "dir_info": {"editable": true}}')
    assert find_package(program, [str(program)]) is None
    (packages / "vllm.pth").write_text(f"import site\n# text\n{tmp_path}/my sources\n")
    assert find_package(program, [str(program)]) == package


def test_sources_without_what_vllm_stack_renders_are_not_believed(tmp_path: Path) -> None:
    program, packages = write_environment(tmp_path)
    write_package(packages, **{"engine/arg_utils.py": ARG_UTILS.replace("--shutdown-timeout", "--renamed")})
    said: list[str] = []
    assert read_options(program, [str(program)], "1", said.append, cache=tmp_path / "cache") is None
    assert len(said) == 1


def test_the_names_of_options_are_told_from_what_help_says_about_them() -> None:
    text = (
        "usage: vllm serve [model_tag] [options]\n\n"
        "  Search with --help=all.\n"
        "options:\n"
        "  --api-server-count API_SERVER_COUNT, -asc API_SERVER_COUNT\n"
        "                        How many; see --workers.\n"
        "  --enable-x, --no-enable-x\n"
        "  -h, --help            show --this help\n"
        "  --parser {a,b} or name registered in --plugin\n"
        "  - a point of a list\n"
    )
    assert parse_help(text) == {
        "--api-server-count",
        "-asc",
        "--enable-x",
        "--no-enable-x",
        "-h",
        "--help",
        "--parser",
    }
