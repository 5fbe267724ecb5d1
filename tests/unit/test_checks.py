"""Each check by itself: what it refuses, what it warns of, and that it says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.boxes import GIB, findings_for, gpu_box, inventory, machine, options
from vllm_stack.address import TcpAddress
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import CHECKS, SKIPPABLE, advice, check_names, refuse
from vllm_stack.commands.check import table
from vllm_stack.errors import (
    MachineError,
    ModelError,
    OutputError,
    PortError,
    UsageError,
    VllmCommandError,
)
from vllm_stack.gpus.box import GpuBox
from vllm_stack.layout import Layout
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.find import Model
from vllm_stack.vllm_command import VllmCommand
from vllm_stack.vllm_options.known import RENDERED


def found(name: str, given: Any = None, **facts: Any) -> Finding:
    findings = findings_for(given or options(), inventory(**facts))
    assert name in findings, sorted(findings)
    return findings[name]


def verdicts(given: Any = None, **facts: Any) -> dict[str, str]:
    return {
        name: found.verdict for name, found in findings_for(given or options(), inventory(**facts)).items()
    }


def test_a_sound_box_is_well_in_every_row() -> None:
    assert set(verdicts().values()) == {"ok"}


def test_a_box_without_workers_needs_no_gpu_and_no_vllm() -> None:
    rows = verdicts(options(workers=0), gpus=GpuBox((), "no driver"), vllm=VllmCommandError("none"))
    assert not {"driver", "gpus", "vllm", "host-memory"} & set(rows)


def test_options_that_contradict_each_other_are_refused_by_check_as_by_render() -> None:
    alone = found("options", options(workers=0))
    assert (alone.verdict, "--upstream" in alone.advice) == ("refused", True)
    assert found("options", options(restart_delay_max=5.0)).verdict == "refused"


# The machine.


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(None, "ok"), (1023, "refused"), (1024, "warning"), (4095, "warning"), (4096, "ok")],
)
def test_open_files_must_be_enough_for_supervisord_and_should_be_for_clients(
    limit: int | None, verdict: str
) -> None:
    finding = found("open-files", machine=machine(open_files=limit))
    assert finding.verdict == verdict
    assert verdict == "ok" or "ulimit -Hn" in finding.advice


def test_a_port_in_the_range_of_the_kernel_is_warned_of_with_its_option() -> None:
    finding = found("ports", options(base_port=40000), machine=machine(ephemeral_ports=(32768, 60999)))
    assert finding.verdict == "warning"
    assert "Port 40000 of worker-0" in finding.advice
    assert "--base-port" in finding.advice
    assert found("ports", machine=machine(ephemeral_ports=(32768, 60999))).verdict == "ok"


def test_a_taken_port_is_refused_and_so_is_one_given_twice() -> None:
    taken = found("ports", ports=PortError("Port 8000 is in use"))
    assert (taken.verdict, taken.advice) == ("refused", "Port 8000 is in use")
    assert found("ports", options(port=5001)).verdict == "refused"


def test_a_small_dev_shm_is_warned_of_where_ranks_talk_through_it() -> None:
    docker = machine(shared_memory_free=64 * 2**20)
    finding = found("shared-memory", options(tensor_parallel_size=2), machine=docker)
    assert finding.verdict == "warning"
    assert "--shm-size" in finding.advice
    assert "shared-memory" not in verdicts(machine=docker)
    assert (
        verdicts(options(tensor_parallel_size=2), machine=machine(shared_memory_free=GIB))["shared-memory"]
        == "ok"
    )


def test_memory_for_the_loads_is_weighed_and_on_a_cpu_the_weights_with_it() -> None:
    assert found("host-memory", machine=machine(memory_available=60 * GIB)).verdict == "ok"
    scarce = found("host-memory", machine=machine(memory_available=5 * GIB))
    assert (scarce.verdict, "2 workers take" in scarce.advice) == ("warning", True)
    heavy = Model("org/model", "cache", ModelConfig(), 40 * GIB)
    on_cpu = options(device="cpu")
    # Not a refusal: float32 files may be loaded as half of that.
    short = found("host-memory", on_cpu, model=heavy, machine=machine(memory_available=60 * GIB))
    assert (short.verdict, "fewer --workers" in short.advice) == ("warning", True)
    assert found("host-memory", model=heavy, machine=machine(memory_available=60 * GIB)).verdict == "ok"


@pytest.mark.parametrize(
    ("free", "verdict"), [(10 * 2**20, "refused"), (100 * 2**20, "warning"), (GIB, "ok")]
)
def test_the_disk_must_hold_the_files_and_should_hold_the_logs(free: int, verdict: str) -> None:
    assert found("disk", machine=machine(disk_free=free)).verdict == verdict


def test_a_model_that_the_disk_cannot_hold_is_refused_before_its_download() -> None:
    model = Model("org/model", "hub", ModelConfig(), 15 * GIB, "c0ffee", 16 * GIB)
    finding = found("disk", model=model, model_disk_free=9 * GIB, machine=machine(disk_free=90 * GIB))
    assert isinstance(finding.error, MachineError)
    assert "16.0 GiB" in finding.advice
    assert "HF_HOME" in finding.advice


def test_sockets_that_do_not_fit_below_out_are_said_to_be_elsewhere() -> None:
    deep = options(out=Path("/srv" + "/deep1" * 20))
    assert str(Layout.at(deep.out).socket.parent) in found("out", deep).value
    assert "too long" in found("out", deep).value
    assert found("out", out=OutputError("--out / is not empty")).advice == "--out / is not empty"


# vLLM.


@pytest.mark.parametrize(
    ("version", "device", "verdict", "says"),
    [
        ("0.32.0", "auto", "ok", ""),
        ("0.32.0+cpu", "cpu", "ok", ""),
        ("0.32.0+cpu", "auto", "refused", "--device cpu"),
        ("0.32.0", "cpu", "refused", "docs/vllm-cpu"),
    ],
)
def test_the_build_of_vllm_must_be_for_what_it_runs_on(
    version: str, device: str, verdict: str, says: str
) -> None:
    finding = found("vllm-build", options(device=device), vllm=VllmCommand(("/opt/vllm",), version))
    assert finding.verdict == verdict
    assert says in finding.advice


def test_a_vllm_without_a_version_is_warned_of_and_one_that_is_not_there_refused() -> None:
    unknown = VllmCommand(("/opt/vllm",), None)
    assert found("vllm", vllm=unknown).verdict == "warning"
    assert "vllm-build" not in verdicts(vllm=unknown)
    assert found("vllm", vllm=VllmCommandError("No program")).verdict == "refused"


def test_an_option_that_vllm_does_not_have_is_refused_with_the_nearest() -> None:
    given = options(vllm_args=("--max-modle-len", "8192"))
    finding = found("vllm-options", given, vllm_options=RENDERED)
    assert isinstance(finding.error, UsageError)
    assert "did you mean --max-model-len?" in finding.advice
    assert (
        found("vllm-options", options(vllm_args=("--max_model_len=1",)), vllm_options=RENDERED).verdict
        == "ok"
    )
    untold = found("vllm-options", given, vllm_options=None)
    assert (untold.verdict, "not checked" in untold.value) == ("ok", True)


def test_an_older_driver_than_torchs_cuda_is_warned_of() -> None:
    old = GpuBox(gpu_box(2).gpus, None, "550.54", (12, 4))
    vllm = VllmCommand(("/opt/vllm",), "0.32.0", (13, 0))
    finding = found("driver", gpus=old, vllm=vllm)
    assert finding.verdict == "warning"
    assert "CUDA 13.0" in finding.advice
    newer = GpuBox(gpu_box(2).gpus, None, "580.1", (13, 0))
    assert found("driver", gpus=newer, vllm=vllm).verdict == "ok"


# The model.


def test_heads_that_do_not_divide_are_refused_with_those_that_do() -> None:
    nine = Model("org/model", "cache", ModelConfig(attention_heads=9))
    finding = found("heads", options(tensor_parallel_size=2, workers=1), model=nine)
    assert finding.verdict == "refused"
    assert "1, 3, 9" in finding.advice


@pytest.mark.parametrize(
    ("length", "verdict"),
    [("8192", "ok"), ("8k", "ok"), ("auto", "ok"), ("-1", "ok"), ("8193", "warning"), ("many", "refused")],
)
def test_a_context_longer_than_the_models_own_is_warned_of(length: str, verdict: str) -> None:
    model = Model("org/model", "cache", ModelConfig(max_length=8192))
    finding = found("context", options(vllm_args=("--max-model-len", length)), model=model)
    assert finding.verdict == verdict
    assert verdict == "ok" or f"{length}" in finding.advice
    assert "context" not in verdicts(model=model)


def test_a_model_that_is_not_here_is_taken_on_trust_and_that_is_said() -> None:
    unknown = Model("org/model", "unknown", hub_trouble="The hub does not answer")
    finding = found("hub", model=unknown)
    assert finding.verdict == "warning"
    assert "The hub does not answer" in finding.advice
    assert "vllm-stack fetch org/model" in finding.advice
    broken_off = Model("org/model", "cache", ModelConfig(), commit="c0ffee" * 6, incomplete=True)
    assert found("hub", options(revision="v2"), model=broken_off).advice.endswith(
        "vllm-stack fetch org/model --revision v2 completes it"
    )


def test_without_a_model_nothing_is_said_of_what_follows_from_it() -> None:
    rows = verdicts(model=ModelError("No model"))
    assert rows["model"] == "refused"
    assert not {name for name, check in CHECKS.items() if check.needs_model} & set(rows)


def test_a_download_that_was_broken_off_is_refused_where_it_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken_off = Model("org/model", "cache", ModelConfig(), commit="c0ffee" * 6, incomplete=True)
    finding = found("hub", model=broken_off)
    assert (finding.verdict, "HF_HUB_OFFLINE" in finding.advice) == ("refused", True)


@pytest.mark.parametrize(
    "words",
    [("--hf-overrides", '{"num_attention_heads": 8}'), ("--hf-overrides.num_attention_heads", "8")],
)
def test_what_follows_from_a_config_that_vllm_is_not_to_take_is_left_to_vllm(words: tuple[str, ...]) -> None:
    nine = Model("org/model", "cache", ModelConfig(attention_heads=9, max_length=100))
    given = options(tensor_parallel_size=2, workers=1, vllm_args=(*words, "--max-model-len", "200"))
    rows = verdicts(given, model=nine)
    assert rows["heads"] == "ok"
    assert not {"context", "dtype"} & set(rows)


@pytest.mark.parametrize("share", ["0", "nan", "-1", "1e9", "much"])
def test_a_share_of_memory_that_is_none_is_refused_as_such(share: str) -> None:
    model = Model("org/model", "cache", ModelConfig(), GIB)
    finding = found("gpu-memory", options(vllm_args=("--gpu-memory-utilization", share)), model=model)
    assert finding.verdict == "refused"
    assert f"--gpu-memory-utilization '{share}'" in finding.advice


def test_a_pure_balancer_asks_nothing_of_a_model() -> None:
    rows = verdicts(
        options(workers=0, upstreams=(TcpAddress("10.0.0.1", 8000),)), model=Model("m", "unknown")
    )
    assert set(rows.values()) == {"ok"}


# All together.


def test_render_ends_with_the_first_refusal_and_shows_what_is_warned_of() -> None:
    findings = findings_for(
        options(),
        inventory(model=ModelError("No model"), ports=PortError("taken"), machine=machine(open_files=2000)),
    )
    with pytest.raises(ModelError, match="No model"):
        refuse(findings)
    (only,) = advice(findings)
    assert "2000 files" in only


def test_a_skipped_check_is_not_looked_at_and_says_so() -> None:
    rows = findings_for(options(skip_checks=("ports",)), inventory(ports=PortError("taken")))
    assert rows["ports"].verdict == "skipped"
    refuse(rows)


def test_names_of_checks_are_taken_once_and_essential_ones_not_at_all() -> None:
    assert check_names(["disk", "ports", "disk"]) == ("disk", "ports")
    for name in ("model", "driver", "gpus", "out", "vllm", "nonsense"):
        assert name not in SKIPPABLE
        with pytest.raises(UsageError, match=f"--skip-check {name}"):
            check_names([name])


def test_the_table_has_a_row_for_each_check_and_what_to_do_below_it() -> None:
    findings = findings_for(options(), inventory(ports=PortError("Port 8000 is in use: stop what holds it")))
    lines = list(table(findings))
    assert [line.split()[0] for line in lines[1:-1] if not line.startswith(" ")] == list(findings)
    assert lines[[*findings].index("ports") + 2].strip() == "-> Port 8000 is in use: stop what holds it"
    assert lines[-1] == f"{len(findings)} checks, 1 refused: render would write nothing."
