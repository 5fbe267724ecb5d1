"""A box of AMD GPUs, from the driver to the server's environment, on a stand-in for amdsmi."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import StackFactory, ask
from tests.integration.test_check import Place
from tests.support.amd import GIB, MASKS, Gpu, StandIn, gpus
from tests.support.polling import until
from vllm_stack.gpus.box import GpuBox
from vllm_stack.gpus.driver import read_box
from vllm_stack.vllm_options.known import RENDERED

PATIENCE = 60  # seconds, for a machine that has much to do


@dataclass
class AmdPlace(Place):
    """Where the command line is run, on a box of AMD GPUs."""

    box: StandIn  # type: ignore[assignment]


@pytest.fixture
def amd(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


@pytest.fixture
def here(amd: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The box is that of this process's children: the driver is asked in one."""
    for name, value in amd.environment.items():
        monkeypatch.setenv(name, value)
    return amd


@pytest.fixture
def place(tmp_path: Path, amd: StandIn, monkeypatch: pytest.MonkeyPatch) -> AmdPlace:
    """A box of four GPUs, and a vLLM that tells its options in its help."""
    for mask in MASKS:
        monkeypatch.delenv(mask, raising=False)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "vllm"
    options = "".join(f"  {name}\n" for name in sorted(RENDERED))
    program.write_text(f'#!/bin/sh\n[ "$*" = "serve --help=all" ] && printf %s "{options}"\n')
    program.chmod(0o755)
    amd.show(*gpus(4))
    return AmdPlace(tmp_path, amd)


def test_amds_driver_is_asked_where_there_is_none_of_nvidia(here: StandIn) -> None:
    """What amdsmi prints does not get into the answer."""
    here.show(Gpu(hip=1), replace(gpus(1)[0], used=70 * GIB))
    box = read_box(PATIENCE)
    assert (box.vendor, box.trouble, box.driver) == ("amd", None, "6.14.14")
    assert [gpu.memory_free // GIB for gpu in box.gpus] == [122, 192]


@pytest.mark.parametrize(
    ("shown", "amd_says"),
    [(False, "no AMD driver (amdsmi does not find"), (True, "the AMD driver does not answer: AMDSMI_STATUS")],
)
def test_a_box_without_any_driver_names_both(shown: bool, amd_says: str, here: StandIn) -> None:
    if shown:
        here.show(errors={"amdsmi_init": 34})
    box = read_box(PATIENCE)
    assert box == GpuBox((), box.trouble, vendor="amd" if shown else "nvidia")
    assert (box.trouble or "").startswith(
        f"no NVIDIA driver was found (libnvidia-ml.so.1 is missing), and {amd_says}"
    )


def test_a_box_on_which_all_is_well_is_said_to_be_so_and_rendered(place: AmdPlace) -> None:
    words = (place.model("qwen3-8b", 16_381_470_720), "--workers", "2", "--tensor-parallel-size", "2")
    found = place.checked(*words)
    assert found["driver"] == {**found["driver"], "verdict": "ok", "value": "AMD 6.14.14"}
    assert "4 x AMD Instinct MI300X (192.0 GiB)" in found["gpus"]["value"]
    assert "worker-0: 0,1; worker-1: 2,3" in found["gpus"]["value"]
    done, _ = place.run("render", *words)
    assert done.returncode == 0, done.stderr
    conf = (place.home / "out" / "supervisord.conf").read_text()
    assert 'environment=HIP_VISIBLE_DEVICES="0,1",' in conf
    assert "CUDA_VISIBLE_DEVICES=" not in conf
    assert json.loads((place.home / "out" / "stack.json").read_text())["device"] == "rocm"


def test_masks_are_respected_and_contradictions_refused(place: AmdPlace) -> None:
    model = place.model("qwen3-8b")
    place.env |= {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}
    refusal = place.checked(model, "--workers", "2")["gpus"]["advice"]
    assert "Required 2, but only 1 are available" in refusal
    assert "ROCR_VISIBLE_DEVICES='2,3', HIP_VISIBLE_DEVICES='1' is respected" in refusal
    place.env["CUDA_VISIBLE_DEVICES"] = "0"
    done, _ = place.run("render", model)
    assert done.returncode == 2
    assert "HIP_VISIBLE_DEVICES='1' and CUDA_VISIBLE_DEVICES='0' differ" in done.stderr
    assert not (place.home / "out").exists()


def test_busy_and_ailing_gpus_are_named(place: AmdPlace) -> None:
    busy, broken, worn, *rest = gpus(4)
    place.box.show(
        replace(busy, used=60 * GIB, processes=((os.getpid(), 60 * GIB),)),
        replace(broken, errors={"amdsmi_get_gpu_memory_usage": 10}),
        replace(worn, ecc=1),
        *rest,
    )
    model = place.model("qwen3-8b")
    found = place.checked(model, "--workers", "2")
    assert "worker-0: 2; worker-1: 3" in found["gpus"]["value"]
    assert "GPU 1: AMDSMI_STATUS_NO_PERM - Permission Denied" in found["gpu-health"]["advice"]
    assert "GPU 2: 1 uncorrected memory error since" in found["gpu-health"]["advice"]
    refusal = place.checked(model, "--workers", "3")["gpus"]["advice"]
    assert "GPU 0 is used by pid" in refusal
    assert str(os.getpid()) in refusal


def test_vllm_is_started_with_hips_mask_alone(stack: StackFactory, amd: StandIn) -> None:
    """The wrapper removes the other name, and ROCr's mask is that of the render, whoever starts the stack."""
    amd.show(*gpus(4))
    masks = {"ROCR_VISIBLE_DEVICES": "3,2,1", "CUDA_VISIBLE_DEVICES": "2,0"}
    with stack(workers=2, device="cuda", env={**amd.environment, **masks}) as one:
        assert one.render() == 0
        one.env["ROCR_VISIBLE_DEVICES"] = "0"
        one.start()
        until(one.answers, 15, "supervisord answers")
        until(one.is_ready, 30, "all workers are ready")
        for worker, token in enumerate(("2", "0")):
            state = json.loads(ask(one.ports[worker], path="/fake/state")[1])
            seen = psutil.Process(state["pid"]).environ()
            assert {name: seen[name] for name in MASKS if name in seen} == {
                "HIP_VISIBLE_DEVICES": token,
                "ROCR_VISIBLE_DEVICES": "3,2,1",
            }
            log = (one.layout.logs / f"worker-{worker}.log").read_text()
            assert "started vLLM" in log
            assert "the memory of the GPUs" not in log  # of which NVIDIA's driver would know nothing
