"""What cannot work is refused by `render` and `check` at once, in one sentence, and nothing is written."""

from __future__ import annotations

import getpass
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.nvml import GIB, LIBRARY, Device, Gpu, StandIn, gpus
from tests.support.ports import free_ports
from vllm_stack.vllm_options.known import RENDERED

# Options of that vLLM which are passed on to it.
PASSED_ON = {"--dtype", "--gpu-memory-utilization", "--max-num-seqs"}
CONFIGS = Path(__file__).parents[1] / "unit" / "configs"
# CPU seconds of a verb and its children. The clock on the wall is no measure on a loaded machine; alone,
# all but the wait for a hub that does not answer is computing.
BUDGET = 2.0


@dataclass
class Place:
    """A directory with models and a vLLM, on a box of GPUs: where the command line is run."""

    home: Path
    box: StandIn
    env: dict[str, str] = field(default_factory=dict)

    def model(self, name: str, weights: int = 0) -> str:
        """Make a model with the config of a real one, and an index that tells its size; give its path."""
        directory = self.home / name
        directory.mkdir()
        (directory / "config.json").write_bytes((CONFIGS / f"{name}.json").read_bytes())
        if weights:
            index = {
                "metadata": {"total_size": weights},
                "weight_map": {"w": "model-00001-of-00001.safetensors"},
            }
            (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return str(directory)

    def stack(self, *tables: str, **settings: object) -> tuple[str, str]:
        """Write a stack file with a table for each model; give the words that name it."""
        path = self.home / "stack.toml"
        above = "".join(
            f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in settings.items()
        )
        path.write_text(above + "".join(f"\n[[model]]\n{table}\n" for table in tables))
        return "-f", str(path)

    def run(self, verb: str, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run a verb; give what it said and the CPU seconds that took."""
        names = ("VLLM_STACK_PORT", "VLLM_STACK_ADMIN_PORT", "VLLM_STACK_BASE_PORT")
        ports = zip(names, free_ports(8), strict=False)  # --base-port is the first of several
        env = {
            **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
            **self.box.environment,
            **{name: str(port) for name, port in ports},
            "VLLM_STACK_SKIP_CHECK": "vllm-build",
            "VLLM_STACK_VLLM_COMMAND": str(self.home / "bin" / "vllm"),
            "HF_HUB_OFFLINE": "1",
            **self.env,
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "vllm_stack", verb, *words],
            cwd=self.home,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def checked(self, *words: str) -> dict[str, dict[str, str]]:
        """Give the findings of `check`, by their names; of several models by `NAME MODEL`."""
        done, _ = self.run("check", "--json", *words)
        told: dict[str, Any] = json.loads(done.stdout)
        assert told["ok"] is (done.returncode == 0)
        return {f"{found['name']} {found['model'] or ''}".rstrip(): found for found in told["checks"]}


@pytest.fixture
def place(tmp_path: Path, box: StandIn) -> Place:
    """A box of four GPUs, and a vLLM that tells its options in its help."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "vllm"
    options = "".join(f"  {name}\n" for name in sorted({*RENDERED, *PASSED_ON}))
    program.write_text(f'#!/bin/sh\n[ "$*" = "serve --help=all" ] && printf %s "{options}"\n')
    program.chmod(0o755)
    box.show(*gpus(4))
    return Place(tmp_path, box)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


Case = Callable[[Place], tuple[tuple[str, ...], tuple[str, ...]]]


def too_few_gpus(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    place.box.show(*gpus(3))
    return (place.model("qwen3-8b"), "--workers", "4"), (
        "gpus",
        "Insufficient GPUs: Required 4, but only 3 are available",
        "--workers",
    )


def heads_not_divisible(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (place.model("smollm2-135m"), "--tensor-parallel-size", "2"), (
        "heads",
        "9 attention heads, which --tensor-parallel-size 2 does not divide",
        "1, 3, 9",
    )


def gpu_busy(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    busy = replace(gpus(1)[0], used=60 * GIB, processes=((os.getpid(), 60 * GIB),))
    place.box.show(busy)
    return (place.model("qwen3-8b"),), ("gpus", str(os.getpid()), getpass.getuser(), "--allow-busy")


def model_too_big(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (place.model("llama-3.1-70b", 141_107_412_992),), (
        "gpu-memory",
        "131.4 GiB for the weights",
        "--tensor-parallel-size 4",
    )


def unknown_option(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (place.model("qwen3-8b"), "--", "--max-modle-len", "8192"), (
        "vllm-options",
        "has no option '--max-modle-len'",
        "did you mean --max-model-len",
    )


def model_missing(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("./none",), ("model", "No model './none'", "no such directory")


def model_not_cached_while_offline(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("org/model",), ("model", "org/model", "HF_HUB_OFFLINE")


def mig_for_two(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = tuple(Device(f"MIG-{part}", "NVIDIA H100 MIG 3g.40gb", 40 * GIB) for part in "ab")
    place.box.show(replace(gpus(1)[0], mig_mode=True, migs=parts))
    return (place.model("qwen3-8b"), "--tensor-parallel-size", "2"), (
        "gpus",
        "--tensor-parallel-size 2 cannot use MIG devices",
        "--tensor-parallel-size 1",
    )


def no_driver(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (place.home / LIBRARY).touch()
    place.box = StandIn(place.home / LIBRARY, place.home)
    return (place.model("qwen3-8b"),), (
        "driver",
        "no NVIDIA driver was found",
        "'--device cpu'",
        "'--gpus 0,1'",
    )


def type_that_the_gpu_does_not_compute(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    place.box.show(Gpu("GPU-t4", name="Tesla T4", total=16 * GIB, capability=(7, 5)))
    return (place.model("smollm2-135m"), "--", "--dtype", "bfloat16"), ("dtype", "8.0", "Tesla T4", "float16")


# Of several models in one stack the one in trouble is named.


def too_few_gpus_for_the_second(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    one, two = place.model("qwen3-8b"), place.model("mixtral-8x7b")
    tables = (f'model = "{one}"\ntensor-parallel-size = 2', f'model = "{two}"\nworkers = 3')
    return place.stack(*tables), (
        f"gpus {two}",
        f"{two}: Insufficient GPUs: Required 3, but only 2 are available",
        "2 belong to the other models",
    )


def gpu_of_two_models(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    one, two = place.model("qwen3-8b"), place.model("mixtral-8x7b")
    uuid = gpus(3)[2].uuid
    tables = (f'model = "{one}"\ngpus = [2]', f'model = "{two}"\naliases = ["two"]\ngpus = ["{uuid}"]')
    return place.stack(*tables), (f"gpus {two}", two, "GPU 2 is given to two models", "--allow-busy")


def unknown_option_of_the_second(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    one, two = place.model("qwen3-8b"), place.model("mixtral-8x7b")
    tables = (
        f'model = "{one}"\nvllm-args = ["--max-num-seqs", "8"]',
        f'model = "{two}"\nvllm-args = ["--served-model-name", "two", "--max-modle-len", "8192"]',
    )
    return place.stack(*tables), ("vllm-options two", "two: ", "'--max-modle-len'", "--max-model-len")


def second_model_too_big(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    one, two = place.model("qwen3-8b"), place.model("llama-3.1-70b", 141_107_412_992)
    return place.stack(f'model = "{one}"', f'model = "{two}"'), (
        f"gpu-memory {two}",
        two,
        "131.4 GiB for the weights",
    )


def one_name_for_two_models(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    one, two = place.model("qwen3-8b"), place.model("mixtral-8x7b")
    tables = (f'model = "{model}"\naliases = ["chat"]' for model in (one, two))
    return place.stack(*tables), ("options", "Two models are called 'chat'")


CASES: list[Case] = [
    too_few_gpus_for_the_second,
    gpu_of_two_models,
    unknown_option_of_the_second,
    second_model_too_big,
    one_name_for_two_models,
    too_few_gpus,
    heads_not_divisible,
    gpu_busy,
    model_too_big,
    unknown_option,
    model_missing,
    model_not_cached_while_offline,
    mig_for_two,
    no_driver,
    type_that_the_gpu_does_not_compute,
]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_refused_at_once_in_one_sentence_and_nothing_is_written(
    case: Case, place: Place
) -> None:
    words, (check, *said) = case(place)
    before = sorted(place.home.rglob("*"))
    rendered, seconds = place.run("render", *words)
    assert rendered.returncode in (1, 2), rendered.stdout
    assert rendered.stdout == ""
    *told, sentence = rendered.stderr.splitlines()
    assert sentence.startswith("vllm-stack: ")
    assert all(line.startswith("Asking vLLM") for line in told), rendered.stderr
    assert [piece for piece in said if piece not in sentence] == []
    assert seconds < BUDGET
    findings = place.checked(*words)
    assert findings[check]["verdict"] == "refused"
    advice, model = findings[check]["advice"], check.partition(" ")[2]
    assert sentence.removeprefix("vllm-stack: ") in (advice, f"{model}: {advice}")
    assert sorted(place.home.rglob("*")) == before


def test_a_port_in_use_is_refused_by_both(place: Place, taken_port: int) -> None:
    model = place.model("qwen3-8b")
    rendered, seconds = place.run("render", model, "--port", str(taken_port))
    assert rendered.returncode == 1
    assert f"Port {taken_port}, wanted for the proxy, is in use by process {os.getpid()}" in rendered.stderr
    assert "--port" in rendered.stderr
    assert seconds < BUDGET
    assert place.checked(model, "--port", str(taken_port))["ports"]["verdict"] == "refused"
    assert not (place.home / "out").exists()


def test_a_box_on_which_all_is_well_is_said_to_be_so_and_rendered(place: Place) -> None:
    words = (place.model("qwen3-8b", 16_381_470_720), "--workers", "2", "--tensor-parallel-size", "2")
    done, _ = place.run("check", *words)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["check", "verdict", "measured"]
    rows = {line.split()[0]: line for line in lines[1:-1] if not line.lstrip().startswith("->")}
    assert "4 x NVIDIA H100 80GB HBM3" in rows["gpus"]
    assert "worker-0: 0,1; worker-1: 2,3" in rows["gpus"]
    assert "32 attention heads, 8 KV heads" in rows["heads"]
    assert "weights 7.6 GiB" in rows["gpu-memory"]
    assert "skipped" in rows["vllm-build"]
    assert not (place.home / "out").exists()
    rendered, _ = place.run("render", *words)
    assert rendered.returncode == 0, rendered.stderr
    conf = (place.home / "out" / "supervisord.conf").read_text()
    assert "; Rendered without these checks: vllm-build (--skip-check)." in conf
    assert json.loads((place.home / "out" / "stack.json").read_text())["skipped_checks"] == ["vllm-build"]


def test_a_check_that_is_skipped_refuses_no_more(place: Place) -> None:
    place.env["VLLM_STACK_SKIP_CHECK"] = "vllm-build vllm-options gpu-memory"
    model = place.model("llama-3.1-70b", 141_107_412_992)
    done, _ = place.run("render", model, "--", "--of-the-future")
    assert done.returncode == 0, done.stderr
    conf = (place.home / "out" / "supervisord.conf").read_text()
    assert "; Rendered without these checks: vllm-build, vllm-options, gpu-memory (--skip-check)." in conf


@pytest.mark.parametrize("name", ["gpus", "model", "nonsense"])
def test_a_check_that_cannot_be_skipped_is_named_with_those_that_can(name: str, place: Place) -> None:
    done, _ = place.run("render", place.model("qwen3-8b"), "--skip-check", name)
    assert done.returncode == 2
    assert f"--skip-check {name}" in done.stderr
    assert "gpu-memory" in done.stderr


def test_what_is_uncertain_is_a_warning_that_render_says_aloud(place: Place) -> None:
    model = place.model("qwen3-8b", 72_000_000_000)
    found = place.checked(model)["gpu-memory"]
    assert (found["verdict"], "may not start" in found["advice"]) == ("warning", True)
    done, _ = place.run("render", model)
    assert done.returncode == 0, done.stderr
    assert f"Note: {found['advice']}." in done.stdout


def test_busy_gpus_are_left_out_while_there_are_free_ones_and_taken_if_allowed(place: Place) -> None:
    busy, *free = gpus(3)
    place.box.show(replace(busy, used=60 * GIB, processes=((os.getpid(), 60 * GIB),)), *free)
    model = place.model("qwen3-8b")
    assert "worker-0: 1; worker-1: 2" in place.checked(model, "--workers", "2")["gpus"]["value"]
    assert place.checked(model, "--workers", "3")["gpus"]["verdict"] == "refused"
    allowed = place.checked(model, "--workers", "3", "--allow-busy")["gpus"]["value"]
    assert "worker-0: 0; worker-1: 1; worker-2: 2" in allowed


def test_workers_keep_to_islands_of_nvlink_and_to_the_cores_beside_them(place: Place) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core has no side")
    first, last = cores[0], cores[-1]
    linked = {0: 2, 2: 0, 1: 3, 3: 1}
    place.box.show(
        *(
            replace(
                gpu,
                nvlinks=(linked[index],),
                numa=index % 2,
                cores=(first, first) if index % 2 == 0 else (last, last),
            )
            for index, gpu in enumerate(gpus(4))
        )
    )
    done, _ = place.run("render", place.model("qwen3-8b"), "--workers", "2", "--tensor-parallel-size", "2")
    assert done.returncode == 0, done.stderr
    workers = json.loads((place.home / "out" / "stack.json").read_text())["workers"]
    assert [worker["gpus"] for worker in workers] == [["0", "2"], ["1", "3"]]
    assert [worker["cores"] for worker in workers] == [[first], [last]]
    conf = (place.home / "out" / "supervisord.conf").read_text()
    assert 'CUDA_VISIBLE_DEVICES="0,2",CUDA_DEVICE_ORDER="PCI_BUS_ID"' in conf


def test_models_keep_to_islands_of_nvlink_and_share_no_gpu(place: Place) -> None:
    """An island of four and two pairs: four GPUs choose first, then two, and the single one last."""
    islands = ((0, 2, 4, 6), (1, 3), (5, 7))
    linked = {gpu: tuple(other for other in one if other != gpu) for one in islands for gpu in one}
    place.box.show(*(replace(gpu, nvlinks=linked[index]) for index, gpu in enumerate(gpus(8))))
    one, two, four = (place.model(name) for name in ("smollm2-135m", "qwen3-8b", "mixtral-8x7b"))
    words = place.stack(
        f'model = "{one}"\naliases = ["small"]',
        f'model = "{two}"\ntensor-parallel-size = 2',
        f'model = "{four}"\ntensor-parallel-size = 4',
    )
    found = place.checked(*words)
    assert "worker-0: 5" in found[f"gpus {one}"]["value"]
    assert "worker-1: 1,3" in found[f"gpus {two}"]["value"]
    assert "worker-2: 0,2,4,6" in found[f"gpus {four}"]["value"]
    done, seconds = place.run("render", *words)
    assert done.returncode == 0, done.stderr
    assert seconds < BUDGET
    stack = json.loads((place.home / "out" / "stack.json").read_text())
    assert [worker["gpus"] for worker in stack["workers"]] == [["5"], ["1", "3"], ["0", "2", "4", "6"]]
    assert [model["servers"] for model in stack["models"]] == [["worker-0"], ["worker-1"], ["worker-2"]]
    assert stack["models"][0]["names"] == [one, "small"]


def test_a_gpu_is_for_two_models_if_busy_ones_may_be_used(place: Place) -> None:
    one, two = place.model("qwen3-8b"), place.model("mixtral-8x7b")
    tables = [f'model = "{one}"\ngpus = [2]', f'model = "{two}"\ngpus = [2, 1]\nworkers = 2']
    done, _ = place.run("render", *place.stack(*tables, allow_busy=True))
    assert done.returncode == 1
    assert "1.84 of its memory together" in done.stderr
    half = 'vllm-args = ["--gpu-memory-utilization", "0.5"]'
    tables = [f"{table}\n{half}" for table in tables]
    done, _ = place.run("render", *place.stack(*tables, allow_busy=True))
    assert done.returncode == 0, done.stderr
    assert "--start-stagger" in done.stdout
    stack = json.loads((place.home / "out" / "stack.json").read_text())
    assert [worker["gpus"] for worker in stack["workers"]] == [["2"], ["2"], ["1"]]


def test_the_plan_of_several_models_says_who_gets_what_and_writes_nothing(place: Place) -> None:
    one, two = place.model("qwen3-8b", 16_381_470_720), place.model("mixtral-8x7b", 93_405_593_600)
    words = place.stack(
        f'model = "{one}"\nworkers = "auto"',
        f'model = "{two}"\ntensor-parallel-size = "auto"\nvllm-args = ["--served-model-name", "moe"]',
    )
    before = sorted(place.home.rglob("*"))
    done, seconds = place.run("plan", *words)
    assert done.returncode == 0, done.stderr
    assert f"{one}: --workers auto: 2, one for each free GPU" in done.stdout
    assert "moe: --tensor-parallel-size auto: 2, the fewest GPUs of 79.5 GiB that hold it" in done.stdout
    assert seconds < BUDGET
    assert [path for path in sorted(place.home.rglob("*")) if path not in before] == []


def test_a_broken_gpu_is_passed_over_and_named(place: Place) -> None:
    broken, *whole = gpus(3)
    place.box.show(replace(broken, errors={"*": "lost"}), *whole)
    findings = place.checked(place.model("qwen3-8b"), "--workers", "2")
    assert "worker-0: 1; worker-1: 2" in findings["gpus"]["value"]
    assert "GPU 0: GPU is lost" in findings["gpu-health"]["advice"]


def test_a_driver_that_kills_its_caller_does_not_kill_render(place: Place) -> None:
    place.box.show(*gpus(1), errors={"nvmlInit": "crash"})
    done, _ = place.run("render", place.model("qwen3-8b"))
    assert done.returncode == 1
    assert "the program that asks the NVIDIA driver was killed by SIGSEGV" in done.stderr


# Models on the hub.


@pytest.fixture
def online(place: Place, hub: FakeHub) -> Place:
    """The place, with a hub that it may ask and an empty cache."""
    home = str(place.home / "hf")
    place.env |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "NO_PROXY": "*"}
    return place


def test_a_model_that_is_not_here_is_judged_by_what_the_hub_says_of_it(online: Place, hub: FakeHub) -> None:
    files = {
        "config.json": (CONFIGS / "smollm2-135m.json").read_bytes(),
        "model.safetensors": b"w" * 1000,
    }
    commit = hub.add("org/model", files)
    findings = online.checked("org/model")
    assert commit[:12] in findings["hub"]["value"]
    assert "vllm-stack fetch org/model" in findings["hub"]["value"]
    assert "9 attention heads" in findings["heads"]["value"]
    refused = online.checked("org/model", "--tensor-parallel-size", "2")
    assert refused["heads"]["verdict"] == "refused"
    assert not list(online.home.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "settings", "words", "says"),
    [
        ("org/none", {}, (), ("org/none", "HF_TOKEN")),
        ("org/model", {"gated": True}, (), ("org/model", "HF_TOKEN", "accept")),
        ("org/model", {}, ("--revision", "v9"), ("v9", "org/model")),
    ],
)
def test_what_the_hub_does_not_hand_out_is_refused_with_the_way_to_get_it(
    name: str,
    settings: dict[str, Any],
    words: tuple[str, ...],
    says: tuple[str, ...],
    online: Place,
    hub: FakeHub,
) -> None:
    hub.add("org/model", {"config.json": b"{}"}, **settings)
    done, seconds = online.run("render", name, *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert [piece for piece in says if piece not in done.stderr] == []
    assert seconds < BUDGET
    assert not (online.home / "out").exists()


def test_a_hub_that_does_not_answer_is_a_warning_and_holds_nobody_up(online: Place, hub: FakeHub) -> None:
    hub.trickle = True
    hub.add("org/model", {"config.json": b"{}"})
    begun = time.monotonic()
    found = online.checked("org/model")["hub"]
    assert time.monotonic() - begun < 30  # a hub that trickles would keep us for ever
    assert (found["verdict"], "vllm-stack fetch org/model" in found["advice"]) == ("warning", True)
    done, _ = online.run("render", "org/model")
    assert done.returncode == 0, done.stderr


# The plan, and what is left to us.


def test_the_plan_says_who_gets_what_and_why_and_writes_nothing(place: Place) -> None:
    linked = {0: 1, 1: 0, 2: 3, 3: 2}
    place.box.show(
        *(replace(gpu, nvlinks=(linked[index],), numa=index // 2) for index, gpu in enumerate(gpus(4)))
    )
    model = place.model("mixtral-8x7b", 93_405_593_600)
    done, _ = place.run("plan", model, "--workers", "auto", "--tensor-parallel-size", "auto")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "Workers  2, 2 GPUs each" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["0", ".", "NV", "SYS", "SYS"] in rows
    assert ["3", "SYS", "SYS", "NV", "."] in rows
    assert "worker-1  127.0.0.1" in said
    assert "43.5 GiB for its half of the weights" in said
    assert "--tensor-parallel-size auto: 2, the fewest GPUs of 79.5 GiB that hold it" in said
    assert "--workers auto: 2, as many as the free GPUs make with 2 for each" in said
    assert "supervisord's patience with a worker" in said
    assert not (place.home / "out").exists()


def test_what_is_left_to_us_is_rendered_and_said_aloud(place: Place) -> None:
    model = place.model("qwen3-8b", 16_381_470_720)
    done, _ = place.run("render", model, "--workers", "auto", "--tensor-parallel-size", "auto")
    assert done.returncode == 0, done.stderr
    assert "Note: --workers auto: 4, one for each free GPU." in done.stdout
    stack = json.loads((place.home / "out" / "stack.json").read_text())
    assert [worker["gpus"] for worker in stack["workers"]] == [["0"], ["1"], ["2"], ["3"]]
