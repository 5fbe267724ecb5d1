"""Why a server ended: recorded output of real vLLM gives its sentence, and what is harmless gives none."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from string import Formatter

import pytest

from vllm_stack.worker.cause import diagnose, find_cause
from vllm_stack.worker.rules import RULES

RECORDED = Path(__file__).parent / "recorded"
_EXIT_CODE = re.compile(r"; exit code (-?\d+)$")
MODEL = "the model some-org/some-model"

# recording, phase -> the rule, and what its sentence has to name
CASES = {
    "unknown_option": ("starting", "unknown option", ["--no-such-option"]),
    "invalid_choice": ("starting", "bad value of an option", ["--dtype", "float17", "bfloat16"]),
    "bad_value": ("starting", "bad value of an option", ["--max-model-len", "lots"]),
    "bad_config": ("starting", "bad configuration", ["SpeculativeConfig"]),
    "offline": ("starting", "not cached and offline", [MODEL, "HF_HUB_OFFLINE"]),
    "no_network": ("starting", "no network", [MODEL, "HTTPS_PROXY"]),
    "missing_directory": ("starting", "no such directory", ["/nonexistent/model"]),
    "directory_without_model": ("starting", "no model in the directory", ["/models/empty", "config.json"]),
    "no_weights": ("starting", "no weights", ["/models/noweights"]),
    "damaged_weights": ("starting", "damaged weights", ["the model some-org/some-model"]),
    "code_of_its_own": ("starting", "code of its own", ["/models/custom", "--trust-remote-code"]),
    "unknown_model_type": ("starting", "unknown model type", ["newtype"]),
    "unsupported_architecture": ("starting", "unsupported architecture", ["NoSuchModelForCausalLM"]),
    "architecture_given_up": ("starting", "architecture given up", ["Phi3SmallForCausalLM"]),
    "hub_has_no_such_model": ("starting", "no such model on the hub", ["some-org/missing"]),
    "hub_has_no_such_revision": ("starting", "no such revision", ["some-org/norev", "no-such", "--revision"]),
    "hub_gated": ("starting", "gated model", ["some-org/gated", "HF_TOKEN"]),
    "hub_bad_token": ("starting", "the hub refuses", ["some-org/private", "401", "HF_TOKEN"]),
    "hub_forbidden": ("starting", "the hub refuses", ["some-org/forbidden", "403", "HF_TOKEN"]),
    "hub_rate_limit": ("starting", "the hub asks for patience", ["429"]),
    "port_in_use": ("starting", "address in use", ["port 18977", "--base-port"]),
    "inner_port_in_use": ("starting", "inner port in use", ["port 29500"]),
    "heads_do_not_divide": ("starting", "heads do not divide", ["4 attention heads", "3 GPUs"]),
    "max_model_len_too_long": ("starting", "longer than the model", ["200000", "2048"]),
    "gpu_too_old_for_bfloat16": ("starting", "bfloat16 on an old GPU", ["Tesla T4", "--dtype half"]),
    "memory_taken_by_others": ("starting", "memory taken by others", ["node 0", "0.99"]),
    "gpu_memory_taken_by_others": ("starting", "memory taken by others", ["12.31", "cuda:0", "72.91"]),
    "kv_cache_too_small": ("starting", "room for shorter requests", ["131072", "--max-model-len 78720"]),
    "no_room_for_kv_cache": ("starting", "no room for the KV cache", ["--gpu-memory-utilization"]),
    "kv_cache_larger_than_memory": ("starting", "KV cache larger than the memory", ["14.0 GiB", "node 0"]),
    "gpu_memory_full_while_starting": ("starting", "GPU memory full", ["GPU 1", "2.50 GiB", "79.25 GiB"]),
    "gpu_memory_full_while_ready": ("ready", "GPU memory full", ["GPU 1", "1.79 GiB"]),
    "gpu_memory_full_no_figures": ("ready", "GPU memory full, no figures", ["a GPU"]),
    "shared_memory_full": ("starting", "shared memory too small", ["160 MiB", "0 MiB"]),
    "shared_memory_full_for_nccl": ("starting", "shared memory full", ["mount -o remount"]),
    "host_memory_refused": ("starting", "host memory refused", ["ulimit -v"]),
    "host_memory_refused_at_fork": ("starting", "host memory refused", ["ulimit -v"]),
    "disk_full_while_downloading": ("starting", "disk full", ["/home/user/.cache/huggingface", "HF_HOME"]),
    "disk_full_in_the_hubs_downloader": ("starting", "disk full", ["HF_HOME"]),
    "no_gpu": ("starting", "no GPU seen", ["CUDA_VISIBLE_DEVICES"]),
    "no_device_type": ("starting", "no GPU seen", ["nvidia-smi"]),
    "driver_too_old": ("starting", "driver too old", ["driver"]),
    "gpu_not_in_this_build": ("starting", "GPU not in this build", ["compute capability"]),
    "fabric_manager": ("starting", "fabric manager", ["nvidia-fabricmanager"]),
    "gpu_memory_broken": ("ready", "GPU memory broken", ["Xid"]),
    "gpu_lost": ("starting", "GPU lost", ["Xid"]),
    "cuda_error": ("ready", "CUDA error", ["an illegal memory access was encountered"]),
    "cuda_error_aborts": ("ready", "CUDA error", ["unspecified launch failure"]),
    "nccl_error": ("starting", "NCCL error", ["unhandled system error"]),
    "nccl_error_of_vllm": ("starting", "NCCL error", ["unhandled cuda error"]),
    "nccl_timeout": ("ready", "collective timed out", ["NCCL"]),
    "worker_segfault_while_ready": ("ready", "segmentation fault", ["one of its processes", "SIGSEGV"]),
    "engine_killed_while_ready": ("ready", "engine died", ["dmesg"]),
    "engine_segfault_while_starting": ("starting", "engine did not start", ["Engine core", "dmesg"]),
    "server_told_to_stop_while_ready": ("ready", "told to stop", ["SIGTERM"]),
    "server_killed_while_ready": ("ready", "killed", ["SIGKILL"]),
}

# What is known without a line: return code, phase, OOM kills -> the rule
SILENT = {
    (-signal.SIGKILL, "ready", 1): "OOM kill",
    (-signal.SIGKILL, "starting", 2): "OOM kill",
    (128 + signal.SIGKILL, "ready", 1): "OOM kill",
    (-signal.SIGKILL, "ready", 0): "killed",
    (128 + signal.SIGKILL, "ready", 0): "killed",
    (-signal.SIGTERM, "starting", 0): "signalled",
    (-signal.SIGTERM, "starting", 3): "signalled",
    (-signal.SIGINT, "ready", 0): "signalled",
    (-signal.SIGILL, "starting", 0): "illegal instruction",
    (-signal.SIGSEGV, "starting", 0): "segmentation fault",
    (128 + signal.SIGSEGV, "ready", 0): "segmentation fault",
    (-signal.SIGBUS, "ready", 0): "bus error",
    (0, "ready", 0): "engine died unsaid",
}

# One line says it: line, return code, phase, OOM kills -> the rule
LINES = {
    "other versions than the cluster": "RuntimeError: Version mismatch: The cluster was started with:",
    "ray cannot go on": "2026-11-27 19:01:57 vllm-stack ray: cannot go on: Ray has ended (exit code 1)",
    "no room for one request": "ValueError: To serve at least one request with the model's max seq len (8), "
    "(1.0 GiB KV cache is needed, which is larger than the available KV cache memory (0.1 GiB). Try",
    "other bad option": "  Value error, Sleep mode is not supported. [type=value_error, x",
    "no such revision, unnamed": "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.",
    "bad command line": "vllm serve: error: the following arguments are required: model_tag",
}

_STAMP = "11-23 10:00:00"
ALARMING = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB.",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "OSError: [Errno 98] Address already in use",
    "OSError: [Errno 28] No space left on device",
    "RuntimeError: NCCL error: unhandled cuda error",
    "ValueError: No available memory for the cache blocks.",
]
HARMLESS = [
    f"(EngineCore pid=7) INFO {_STAMP} [shm_broadcast.py:698] No available shared memory broadcast block "
    "found in 60 seconds. This typically happens when some processes are hanging.",
    f"(APIServer pid=7) WARNING {_STAMP} [system_utils.py:255] Found ulimit of 20000 and failed to "
    "automatically increase. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.",
    f"(APIServer pid=7) WARNING {_STAMP} [model.py:2660] positions exceeding it will cause "
    "a CUDA array out-of-bounds error.",
    f"(APIServer pid=7) WARNING {_STAMP} [parallel.py:746] Address already in use. Retrying with a new port.",
    f"(APIServer pid=7) WARNING {_STAMP} [chat.py:90] No chat template is set.",
    "/opt/torch/cuda/__init__.py:180: UserWarning: CUDA initialization: The NVIDIA driver on your system "
    "is too old (found version 12040).",
    "[W1123 20:59:45.467566827 utils.cpp:68] Warning: NUMA binding: CUDA error: out of memory",
    'INFO:     127.0.0.1:35468 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error',
    "nanobind: leaked 4 instances!",
    "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 234.16it/s]",
]
HARMLESS += [
    f"(EngineCore pid=7) {level} {_STAMP} [a.py:1] {alarming}"
    for alarming in ALARMING
    for level in ("DEBUG", "INFO", "WARNING")
]
# What clients write comes back in logged requests and in messages of errors.
PROMPT_LIKE = [
    line
    for alarming in ALARMING
    for line in (
        f"(APIServer pid=7) INFO {_STAMP} [logger.py:40] Received request cmpl-1: prompt: '{alarming}'",
        f"(APIServer pid=7) INFO {_STAMP} [logger.py:40] {alarming}",
        f"(APIServer pid=7) ERROR {_STAMP} [serving.py:300] ValueError: cannot parse {alarming!r}",
        f"(APIServer pid=7) ERROR {_STAMP} [serving.py:300] {alarming}",
        f"ValueError: Unknown tool {alarming}",
        f"    raise ValueError('{alarming}')",
        f'  "{alarming}"',
    )
]


def recorded(name: str) -> tuple[int, list[str]]:
    """Give the exit code and the lines of a recording."""
    head, *lines = (RECORDED / f"{name}.txt").read_text("utf-8").splitlines()
    code = _EXIT_CODE.search(head)
    assert code is not None
    return int(code[1]), lines


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_end_gives_its_cause_and_names_what_matters(name: str) -> None:
    phase, rule, words = CASES[name]
    returncode, lines = recorded(name)
    diagnosis = diagnose(returncode, phase, lines)
    assert diagnosis is not None
    assert diagnosis.name == rule
    for word in words:
        assert word in diagnosis.sentence
    assert find_cause(returncode, phase, lines) == diagnosis.sentence


def test_every_recording_is_tested_and_says_where_it_is_from() -> None:
    assert {path.stem for path in RECORDED.glob("*.txt")} == set(CASES)
    for path in RECORDED.glob("*.txt"):
        head, *lines = path.read_text("utf-8").splitlines()
        assert re.match(r"# (vLLM 0\.32\.0 \(CPU build\), recorded|not recorded: composed from )", head)
        assert len(lines) <= 60


@pytest.mark.parametrize(("returncode", "phase", "oom_kills"), SILENT)
def test_a_signal_alone_can_say_it(returncode: int, phase: str, oom_kills: int) -> None:
    diagnosis = diagnose(returncode, phase, [], oom_kills)
    assert diagnosis is not None
    assert diagnosis.name == SILENT[returncode, phase, oom_kills]


@pytest.mark.parametrize("name", LINES)
def test_one_line_can_say_it(name: str) -> None:
    diagnosis = diagnose(1, "starting", [LINES[name]])
    assert diagnosis is not None
    assert diagnosis.name == name


@pytest.mark.parametrize("name", ["engine_killed_while_ready", "engine_segfault_while_starting"])
def test_an_engine_that_vanished_while_the_oom_killer_struck_was_its_victim(name: str) -> None:
    returncode, lines = recorded(name)
    diagnosis = diagnose(returncode, CASES[name][0], lines, oom_kills=1)
    assert diagnosis is not None
    assert diagnosis.name == "OOM kill of the engine"
    assert "OOM killer" in diagnosis.sentence


def test_an_oom_kill_elsewhere_does_not_hide_a_cause_that_was_said() -> None:
    for name in ("gpu_memory_full_while_ready", "no_network", "port_in_use", "cuda_error"):
        phase, rule, _ = CASES[name]
        returncode, lines = recorded(name)
        diagnosis = diagnose(returncode, phase, lines, oom_kills=1)
        assert diagnosis is not None
        assert diagnosis.name == rule


def test_every_rule_is_met_by_a_test() -> None:
    met = {rule for _, rule, _ in CASES.values()} | set(SILENT.values()) | set(LINES)
    assert {rule.name for rule in RULES} == met | {"OOM kill of the engine"}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_sentence_names_only_what_its_rule_knows() -> None:
    known = {"model", "model_name", "address", "oom_kills", "signal", "victim"}
    for rule in RULES:
        found = set(rule.pattern.groupindex) if rule.pattern else set()
        assert {name for _, name, _, _ in Formatter().parse(rule.sentence) if name} <= known | found, (
            rule.name
        )


def test_a_process_that_the_server_itself_ended_is_not_a_signal_from_outside() -> None:
    line = "(EngineCore pid=7) ERROR 11-23 10:00:00 [m:1] Worker proc W died unexpectedly (exit code: -15)"
    diagnosis = diagnose(0, "ready", [line])
    assert diagnosis is not None
    assert diagnosis.name == "engine died"


def test_a_sentence_can_stand_behind_a_colon() -> None:
    for name, (phase, _, _) in CASES.items():
        sentence = find_cause(recorded(name)[0], phase, recorded(name)[1])
        assert sentence is not None
        assert "\n" not in sentence
        assert "{" not in sentence
        assert not sentence.endswith(".")
        assert len(sentence) < 400


@pytest.mark.parametrize("phase", ["starting", "ready"])
@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_harmless_is_no_cause(line: str, phase: str) -> None:
    assert find_cause(1, phase, [line]) is None


@pytest.mark.parametrize("line", PROMPT_LIKE)
def test_what_a_client_wrote_is_no_cause(line: str) -> None:
    assert find_cause(1, "ready", [line]) is None


@pytest.mark.parametrize("returncode", [-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL])
@pytest.mark.parametrize("line", ALARMING)
def test_a_signal_from_outside_is_not_explained_by_what_was_written(line: str, returncode: int) -> None:
    diagnosis = diagnose(returncode, "starting", [line])
    assert diagnosis is not None
    assert diagnosis.name in ("killed", "signalled")


def test_an_error_that_was_survived_is_no_cause() -> None:
    old = f"(Worker pid=7) ERROR 11-23 09:57:59 [a.py:1] {ALARMING[0]}"
    new = "(APIServer pid=7) INFO 11-23 10:00:00 [loggers.py:259] Engine 000: Avg prompt throughput: 1.0"
    assert find_cause(1, "ready", [old, new]) is None
    assert find_cause(1, "ready", [old.replace("09:57:59", "09:58:01"), new]) is not None


def test_a_line_without_a_time_is_as_new_as_the_next_one_that_has_one() -> None:
    """A quiet server may be silent for hours before C++ or CUDA writes its last words."""
    old = "(Worker pid=7) INFO 11-23 07:00:00 [a.py:1] Loading weights took 1 seconds"
    new = "(APIServer pid=7) INFO 11-23 10:00:00 [loggers.py:259] Engine 000: Avg prompt throughput: 1.0"
    assert find_cause(1, "ready", [ALARMING[0], old, new]) is None
    assert find_cause(1, "ready", [old, ALARMING[0], new]) is not None
    assert find_cause(1, "ready", [old, new, ALARMING[0]]) is not None


def test_lines_of_several_processes_may_stand_out_of_order() -> None:
    error = f"(Worker pid=7) ERROR 11-23 10:00:02 [a.py:1] {ALARMING[0]}"
    late = "(APIServer pid=7) INFO 11-23 10:00:00 [loggers.py:259] Engine 000: Avg prompt throughput: 1.0"
    assert find_cause(1, "ready", [error, late]) is not None


def test_an_error_of_the_last_second_of_a_year_is_near() -> None:
    old = f"(Worker pid=7) ERROR 12-31 23:59:59 [a.py:1] {ALARMING[0]}"
    new = "(APIServer pid=7) INFO 01-01 00:00:01 [loggers.py:259] Engine 000: Avg prompt throughput: 1.0"
    assert find_cause(1, "ready", [old, new]) is not None


def test_a_time_that_does_not_exist_does_no_harm() -> None:
    assert (
        find_cause(1, "starting", [f"(Worker pid=7) ERROR 13-45 99:99:99 [a.py:1] {ALARMING[0]}"]) is not None
    )


def test_a_ready_server_does_not_die_of_what_a_request_could_not_fetch() -> None:
    _, lines = recorded("no_network")
    assert find_cause(1, "ready", lines) is None


def test_a_server_in_its_stop_was_not_killed_from_outside() -> None:
    assert find_cause(-signal.SIGKILL, "stopping", []) is None
    assert find_cause(0, "stopping", recorded("server_told_to_stop_while_ready")[1]) is None


@pytest.mark.parametrize(
    "lines", [[], ["KeyError: 'x'"], ["Traceback (most recent call last):", "AssertionError"]]
)
def test_what_is_not_known_is_not_guessed(lines: list[str]) -> None:
    assert find_cause(1, "starting", lines) is None
    assert find_cause(1, "ready", lines) is None
    assert find_cause(-signal.SIGABRT, "ready", lines) is None
    assert find_cause(0, "starting", lines) is None


def test_an_unknown_option_is_named_without_what_was_given_for_it() -> None:
    line = "vllm: error: unrecognized arguments: --api-kee sk-secret --other x"
    sentence = find_cause(2, "starting", [line])
    assert sentence is not None
    assert "--api-kee" in sentence
    assert "secret" not in sentence


def test_a_socket_in_use_is_named_as_a_socket() -> None:
    args = "(APIServer pid=7) INFO 11-23 10:00:00 [u.py:1] non-default args: {'uds': '/run/w0.sock'}"
    sentence = find_cause(1, "starting", [args, "OSError: [Errno 98] Address already in use"])
    assert sentence is not None
    assert sentence.startswith("the socket /run/w0.sock is in use")


def test_values_that_the_output_does_not_show_are_left_out() -> None:
    sentence = find_cause(1, "starting", ["OSError: [Errno 98] Address already in use"])
    assert sentence is not None
    assert sentence.startswith("its port is in use")


def test_braces_and_backslashes_in_the_output_do_no_harm() -> None:
    line = r"vllm serve: error: argument --x: invalid choice: '{model} \1 {0}'"
    sentence = find_cause(2, "starting", [line])
    assert sentence is not None
    assert r"'{model} \1 {0}'" in sentence


@pytest.mark.parametrize(
    "text", ["A" * 100_000, "Error: " * 20_000, "(" * 50_000, " " * 100_000, "OSError: " + "x" * 99_999]
)
@pytest.mark.timeout(20)
def test_a_monstrous_line_costs_no_time(text: str) -> None:
    assert find_cause(1, "starting", [text] * 3) is None
