"""A stack written down in TOML: what it says is what the command line would say, and nonsense is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.refusal import assert_refused
from tests.unit.boxes import typed as options_of
from vllm_stack import cli
from vllm_stack.checks.run import SKIPPABLE
from vllm_stack.options import Options
from vllm_stack.sizes import MIB

ONE = '[[model]]\nmodel = "one"\n'
TWO = '[[model]]\nmodel = "two"\n'
# Without workers here no vLLM is asked for its options.
ELSEWHERE = 'workers = 0\nupstream = ["http://gpu2"]\n'
FILE = ["-f", "stack.toml"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand beside two models and a vLLM, without a GPU."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("VLLM_STACK", "CUDA")):
            monkeypatch.delenv(name)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"num_attention_heads": 9}))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def toml_of(*words: str) -> str:
    """Give what `--toml` prints for a command line."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.run(["render", "--toml", *words]) == 0
    return said.getvalue()


def options_in(text: str, *words: str) -> tuple[Options, ...]:
    """Give the options that `render` makes of a file, and of words beside it."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        return options_of("-f", file.name, *words)


# --- what is read


def test_a_file_says_what_the_command_line_says() -> None:
    text = """
        port = 8080
        worker_transport = "unix"
        api-key = "k"
        open-route = ["/metrics", "/version"]
        allow-busy = true
        restart-delay = 5
        start-stagger = 60

        [[model]]
        model = "org/model"
        workers = 2
        tensor_parallel_size = 2
        gpus = [4, 5, "GPU-1234", "7"]
        revision = "abc"
        upstream = "http://gpu2:8000"
        vllm-args = ["--max-model-len", 8192, "--seed", "1"]
    """
    words = (
        "--port=8080 --worker-transport=unix --api-key=k --open-route=/metrics --open-route=/version "
        "--allow-busy --restart-delay=5 --start-stagger=60 --workers=2 --tensor-parallel-size=2 "
        "--gpus=4,5,GPU-1234,7 --revision=abc --upstream=http://gpu2:8000 org/model "
        "-- --max-model-len 8192 --seed 1"
    )
    assert options_in(text) == options_of(*words.split())


def test_each_model_has_its_own_and_the_stack_is_the_same_for_all() -> None:
    one, two = options_in(
        f'policy = "random"\n{ONE}aliases = ["chat", "gpt"]\nworkers = 3\n{TWO}workers = "auto"\n'
    )
    assert (one.model, one.aliases, one.workers, one.first_worker) == ("one", ("chat", "gpt"), 3, 0)
    assert (two.model, two.aliases, two.automatic, two.first_worker) == ("two", (), {"workers"}, 3)
    assert {one.policy, two.policy} == {"random"}


def test_a_single_table_and_a_byte_order_mark_are_no_matter() -> None:
    assert options_in('\ufeff[model]\r\nmodel = "one"\r\n') == options_of("one")


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f"port = 1111\nadmin-port = 2222\nbase-port = 3333\n{ONE}"
    monkeypatch.setenv("VLLM_STACK_PORT", "4444")
    monkeypatch.setenv("VLLM_STACK_ADMIN_PORT", "5555")
    (told,) = options_in(text, "--port", "6666")
    assert (told.port, told.admin_port, told.base_port) == (6666, 5555, 3333)


def test_of_models_the_file_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STACK_WORKERS", "7")
    monkeypatch.setenv("VLLM_STACK_GPUS", "0,1")
    monkeypatch.setenv("VLLM_STACK_UPSTREAM", "http://gpu2")
    one, two = options_in(ONE + TWO + "workers = 2\n")
    assert (one.workers, one.gpus, one.upstreams, two.workers) == (1, None, (), 2)


def test_the_last_of_two_files_counts_as_of_any_option(home: Path) -> None:
    (home / "stack.toml").write_text(ONE)
    assert [one.model for one in options_in(TWO, *FILE)] == ["one"]


def test_paths_are_those_of_the_working_directory(home: Path) -> None:
    (home / "keys").write_text("sk-1\n")
    (home / "keys").chmod(0o600)
    (told,) = options_in(f'api-key-file = "keys"\nout = "stacks/a"\n{ONE}')
    assert (told.api_keys, told.out) == (("sk-1",), Path("stacks/a"))


# --- what is refused


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # No TOML.
        ("x = = 1", ["not TOML", "line 1"]),
        (b'model = "\xff"', ["not TOML"]),
        ((ONE).encode("utf-16"), ["not TOML"]),
        ('x = "\0"', ["not TOML"]),
        ('x = "\\ud800"', ["not TOML"]),
        ("x = 1979-02-31T25:00:00Z", ["not TOML"]),
        ("x = " + "[" * 5000 + "]" * 5000, ["not TOML"]),
        (f"{ONE}workers = {'9' * 5000}", ["not TOML", "digits"]),
        ("x = 1\nx = 2", ["not TOML"]),
        # No models.
        ("", ["[[model]]"]),
        ("port = 1", ["[[model]]"]),
        ("model = 5", ["[[model]]"]),
        ('model = "one"', ["[[model]]"]),
        ("model = []", ["[[model]]"]),
        ("model = [5]", ["[[model]]"]),
        ("model = {}", ["model 1 has no `model`"]),
        (f"{ONE}[[model]]\nworkers = 1", ["model 2 has no `model`"]),
        ('[[model]]\nmodel = ""', ["model 1 has no `model`"]),
        ('[[models]]\nmodel = "one"', ["'models'", "did you mean 'model'"]),
        # Keys that mean nothing, or not there.
        (f"prot = 1\n{ONE}", ["stack.toml", "'prot'", "did you mean 'port'"]),
        (f"{ONE}{TWO}wokers = 1", ["model 2", "'wokers'", "did you mean 'workers'"]),
        (f"{ONE}alias = []", ["'alias'", "did you mean 'aliases'"]),
        (f'"a\\nb" = 1\n{ONE}', ["'a\\nb'"]),
        (f"workers = 2\n{ONE}", ["'workers' belongs into a [[model]] table"]),
        (f"vllm_args = []\n{ONE}", ["'vllm_args' belongs into a [[model]] table"]),
        (f"{ONE}port = 1", ["model 1", "'port' belongs above the tables"]),
        *((f"{key} = true\n{ONE}", [f"'{key}'"]) for key in ("dry-run", "json", "toml", "file", "help")),
        *((f"{ONE}{key} = true", [f"'{key}'"]) for key in ("dry_run", "as_json", "as_toml", "help")),
        (f"base-port = 1\nbase_port = 2\n{ONE}", ["base-port and base_port are one option"]),
        (f"{ONE}vllm_args = []\nvllm-args = []", ["vllm_args and vllm-args are one option"]),
        # Values that mean nothing.
        *(
            (f"{ONE}{TWO}workers = {value}", ["stack.toml, model 2: workers"])
            for value in ("2.5", "true", "-1", "[1]", "[]", "{a = 1}", "nan", '""', "1979-05-27", "1025")
        ),
        (f"{ONE}workers = 0x{'f' * 5000}", ["model 1: workers", "digits"]),
        (f"{ONE}tensor-parallel-size = 65", ["tensor-parallel-size", "65"]),
        (f"[port]\na = 1\n{ONE}", ["port takes one value"]),
        (f"port = [1, 2]\n{ONE}", ["port takes one value, not a list"]),
        (f'policy = "best"\n{ONE}', ["policy", "best", "round-robin"]),
        (f'allow-busy = "x"\n{ONE}', ["allow-busy", "'x'"]),
        (f"restart-delay = inf\n{ONE}", ["restart-delay", "inf"]),
        (f'session-header = "a_b"\n{ONE}', ["session-header", "a_b"]),
        (f"open-route = [[1]]\n{ONE}", ["open-route takes a list of words"]),
        (f"{ONE}aliases = {{a = 1}}", ["aliases takes a list of words"]),
        (f'{ONE}aliases = ["-a"]', ["'-a'", "alias"]),
        (f'{ONE}aliases = [""]', ["''", "alias"]),
        (f'{ONE}aliases = ["a\\nb"]', ["'a\\nb'", "alias"]),
        (f"{ONE}gpus = [[0]]", ["gpus takes a list of words"]),
        (f"{ONE}gpus = []", ["--gpus"]),
        (f"{ONE}gpus = [0, 0]", ["--gpus", "twice"]),
        (f"{ONE}gpus = [-1]", ["--gpus", "-1"]),
        (f'{ONE}vllm-args = "--max-model-len 8192"', ["vllm-args takes a list of words"]),
        *(
            (f'{key} = "a\\u0000b"\n{ONE}', [f"{key} has a NUL byte"])
            for key in ("out", "host", "api-key-file", "tls-cert", "open-route", "vllm-command")
        ),
        *((f'{ONE}{key} = "a\\u0000"', [f"{key} has a NUL byte"]) for key in ("revision", "gpus")),
        ('[[model]]\nmodel = "a\\u0000"', ["model has a NUL byte"]),
        (f'{ONE}vllm-args = ["a\\u0000"]', ["vllm-args has a NUL byte"]),
        # What cannot be meant together.
        (f'device = "cpu"\n{ONE}{TWO}gpus = [0]', ["--gpus 0", "--device cpu"]),
        (f'device = "cpu"\n{ONE}workers = "auto"', ["--workers auto", "--device cpu"]),
        (f'{ONE}workers = "auto"\n{TWO}workers = "auto"', ["/one", "/two", '"auto"', "one model only"]),
        (f'device = "cpu"\n{ONE}{ONE}', ["Two models are called", "/one"]),
        (f'device = "cpu"\n{ONE}aliases = ["x"]\n{TWO}aliases = ["x"]', ["Two models are called 'x'"]),
        (
            f'{ONE}{ELSEWHERE}aliases = ["x"]\n{TWO}{ELSEWHERE}vllm-args = ["--lora-modules", "x=/a"]',
            ["Two models are called 'x'"],
        ),
        (
            f'{ONE}{ELSEWHERE}aliases = ["x"]\nvllm-args = ["--served_model_name=y"]',
            ["aliases and --served-model-name both name one"],
        ),
        (f'device = "cpu"\n{ONE}workers = 0\n{TWO}', ["--workers 0", "--upstream"]),
        (f"{ONE}gpus = [0]\n{TWO}gpus = [0]", ["/two", "GPU 0 is given to two models", "--allow-busy"]),
        *(
            (f'device = "cpu"\n{ONE}{TWO}vllm-args = {words}', ["/two", *names])
            for words, names in {
                '["--model", "x"]': ["'--model'", "MODEL"],
                '["-tp", "2"]': ["'-tp'", "--tensor-parallel-size"],
            }.items()
        ),
    ],
)
def test_what_a_file_cannot_mean_is_one_clear_line_and_nothing_is_written(
    home: Path, capfd: pytest.CaptureFixture[str], text: str | bytes, names: list[str]
) -> None:
    (home / "stack.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    sentence, whole = assert_refused(home, capfd, ["render", *FILE], 2)
    assert [name for name in names if name not in sentence] == []
    assert [line for line in whole.splitlines() if not line.startswith("Asking vLLM")] == [sentence]


def test_ports_beyond_the_last_are_named(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tables = "".join(
        f'[[model]]\nmodel = "one"\nworkers = 1024\nvllm-args = ["--served-model-name", "{name}"]\n'
        for name in "abc"
    )
    (home / "stack.toml").write_text(f'device = "cpu"\nbase-port = 63000\n{tables}')
    sentence, _ = assert_refused(home, capfd, ["render", *FILE], 1)
    assert "worker-2536 would get port 65536" in sentence


@pytest.mark.parametrize(
    ("path", "code", "names"),
    [
        ("none.toml", 1, ["none.toml", "No such file"]),
        ("a\nb.toml", 1, ["a\\nb.toml", "No such file"]),
        ("one", 1, ["one", "Is a directory"]),
        ("", 1, ["Is a directory"]),
        ("x" * 5000, 1, ["File name too long"]),
        ("pipe", 1, ["pipe", "Not a regular file"]),
        ("/dev/zero", 1, ["/dev/zero", "Not a regular file"]),
        ("loop", 1, ["loop", "symbolic links"]),
        ("huge.toml", 1, ["huge.toml", "Larger than 1 MiB"]),
        ("~nobody-of-that-name/a.toml", 2, ["~nobody-of-that-name/a.toml"]),
        ("/proc/self/status", 2, ["/proc/self/status", "not TOML"]),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    home: Path, capfd: pytest.CaptureFixture[str], path: str, code: int, names: list[str]
) -> None:
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to("loop")
    (home / "huge.toml").write_bytes(b"#" * (MIB + 1))
    sentence, whole = assert_refused(home, capfd, ["render", "-f", path], code)
    assert [name for name in names if name not in sentence] == []
    assert whole == sentence


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["one"], "MODEL"),
        (["--", "--max-model-len", "5"], "What follows `--`"),
        (["--workers", "1"], "--workers"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size"),
        (["--gpus", "0"], "--gpus"),
        (["--revision", "x"], "--revision"),
        (["--upstream", "http://gpu2"], "--upstream"),
    ],
)
@pytest.mark.parametrize("verb", ["render", "plan", "check"])
def test_what_belongs_to_a_model_does_not_stand_beside_a_file(
    home: Path, capfd: pytest.CaptureFixture[str], verb: str, words: list[str], what: str
) -> None:
    (home / "stack.toml").write_text(ONE)
    sentence, _ = assert_refused(home, capfd, [verb, *FILE, *words], 2)
    assert sentence.startswith(f"vllm-stack: {what} belongs to one model"), sentence


@pytest.mark.parametrize(
    "text",
    [
        'api-key = ["sk-deep", "söt"]\n',
        'api-key = "sk-deep\\nx"\n',
        'api-key = "sk-deep\\u0000"\n',
        'api-key = [["sk-deep"]]\n',
        'api-key = {sk-deep = "sk-deep"}\n',
        'api-keys = ["sk-deep"]\n',
        "api-key = sk-deep\n",
        'api-key = "sk-deep\n',
        f'{TWO}api-key = "sk-deep"\n',
        f'{TWO}upstream = ["http://me:sk-deep@gpu2"]\n',
    ],
)
def test_no_refusal_shows_a_key(home: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    (home / "stack.toml").write_text(f'device = "cpu"\n{text}{ONE}')
    _, whole = assert_refused(home, capfd, ["render", *FILE], 2)
    assert "sk-deep" not in whole


# --- what is printed


def test_the_printed_file_has_a_table_for_each_model_and_no_defaults() -> None:
    words = "--workers 2 --port 8080 --max-body 7 --gpus GPU-1,GPU-2 org/model -- --seed 1"
    text = toml_of(*words.split())
    assert text == (
        "port = 8080\nmax-body = 7\n\n"
        '[[model]]\nmodel = "org/model"\nworkers = 2\ngpus = "GPU-1,GPU-2"\n'
        'vllm-args = [\n    "--seed",\n    "1",\n]\n'
    )


def test_printing_writes_nothing_and_needs_none_of_the_files_it_names(home: Path) -> None:
    before = sorted(home.rglob("*"))
    text = toml_of("one", "--api-key-file", "none", "--tls-cert", "c", "--tls-key", "k")
    assert tomllib.loads(text)["api-key-file"] == "none"
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("where", ["command line", "environment", "file"])
def test_keys_are_not_printed_wherever_they_come_from(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (home / "stack.toml").write_text(f'api-key = "sk-deep"\n{ONE}' if where == "file" else ONE)
    if where == "environment":
        monkeypatch.setenv("VLLM_STACK_API_KEY", "sk-deep")
    text = toml_of(*FILE, *(["--api-key", "sk-deep"] if where == "command line" else []))
    assert "sk-deep" not in text
    assert text.startswith("# --api-key is not written down")
    assert "api-key" not in tomllib.loads(text)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["mod\udcffel"], ["MODEL", "UTF-8"]),
        (["one", "--", "a\udcff"], ["UTF-8"]),
        (["one", "--gpus", "x"], ["--gpus", "x"]),
        (["one", "--upstream", "http://me:hunter2@gpu2"], ["--upstream-key-file"]),
        (["one", "--api-key", "söt"], ["API key"]),
    ],
)
def test_what_cannot_be_meant_is_not_printed(
    home: Path, capfd: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:
    sentence, _ = assert_refused(home, capfd, ["render", "--toml", *words], 2)
    assert [name for name in names if name not in sentence] == []
    assert "hunter2" not in sentence


# Anything that a command line can carry.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
WORD = TEXT.filter(bool)
NAME = st.text("abcxyz-.", min_size=1, max_size=6).map("n{}".format)
PORT = st.integers(1, 65535)
SECONDS = st.one_of(st.integers(1, 10**9), st.floats(1, 1e300))
OF_THE_STACK = {
    "out": WORD,
    "base-port": PORT,
    "port": PORT,
    "admin-port": PORT,
    "host": WORD,
    "worker-transport": st.sampled_from(["tcp", "unix"]),
    "device": st.sampled_from(["auto", "cuda"]),
    "policy": st.sampled_from(["prefix", "session", "least-loaded", "round-robin", "random"]),
    "session-header": NAME,
    "proxy-processes": st.integers(1, 64),
    "open-route": st.lists(TEXT, max_size=2),
    "cors-origin": st.just(["https://app.example"]),
    "max-body": st.integers(1, 1024 * 1024),
    "max-inflight-per-worker": st.integers(min_value=1),
    "queue-timeout": SECONDS,
    "response-timeout": SECONDS,
    "restart-delay": SECONDS,
    "restart-delay-max": SECONDS,
    "start-timeout": SECONDS,
    "start-stagger": st.sampled_from(["auto", "none", "60", "0.5"]),
    "wedge-timeout": SECONDS,
    "drain-timeout": SECONDS,
    "skip-check": st.lists(st.sampled_from(SKIPPABLE), max_size=2),
    "vllm-command": TEXT,
    "allow-busy": st.just(True),
}
GPUS = st.lists(st.one_of(st.integers(0, 99).map(str), NAME.map("GPU-{}".format)), min_size=1, unique=True)
COUNT = st.one_of(st.just("auto"), st.integers(1, 64))
OF_A_MODEL = {
    "workers": COUNT,
    "tensor-parallel-size": COUNT,
    "revision": WORD,
    "gpus": GPUS.map(",".join).filter(lambda gpus: "." not in gpus),
    "upstream": st.lists(st.integers(1, 9).map("http://gpu{}:80".format), unique=True, max_size=2),
}
STACKS = st.fixed_dictionaries({}, optional=OF_THE_STACK)


def words_of(option: str, value: object) -> list[str]:
    if value is True:
        return [f"--{option}"]
    return [f"--{option}={one}" for one in (value if isinstance(value, list) else [value])]


@settings(max_examples=60, deadline=None)
@given(STACKS, st.fixed_dictionaries({}, optional=OF_A_MODEL), WORD, st.lists(TEXT, max_size=3))
def test_the_printed_file_means_the_same_as_the_command_line(
    stack: dict[str, object], one: dict[str, object], model: str, args: list[str]
) -> None:
    words = [word for item in {**stack, **one}.items() for word in words_of(*item)]
    argv = (*words, "--", model, *args)
    assert options_in(toml_of(*argv)) == options_of(*argv)


MODELS = st.fixed_dictionaries(
    {"model": WORD},
    optional={
        **OF_A_MODEL,
        "aliases": st.lists(NAME, max_size=2),
        "vllm-args": st.lists(TEXT, max_size=2),
    },
)


@settings(max_examples=30, deadline=None)
@given(STACKS, st.lists(MODELS, min_size=1, max_size=3))
def test_the_file_that_is_printed_of_a_file_means_the_same(
    stack: dict[str, object], models: list[dict[str, object]]
) -> None:
    text = tomli_w.dumps({**stack, "model": models})
    told = options_in(text)
    assert [one.model for one in told] == [one["model"] for one in models]
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        assert options_in(toml_of("-f", file.name)) == told


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["", ONE, f"{ONE}x = ", f"x = 1\n{ONE}", f"{ONE}workers = "]))
def test_no_text_at_all_is_a_bug(text: str, before: str) -> None:
    """Whatever it is, it is taken, or refused in one sentence."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8", errors="replace") as file:
        file.write(before + text)
        file.flush()
        assert cli.run(["render", "--toml", "-f", file.name]) in (0, 2)
