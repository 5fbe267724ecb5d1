"""Options and a machine give a plan; everything that cannot work is refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boxes import gpu_box, inventory, machine, options, plan_for
from vllm_stack.address import TcpAddress, UnixAddress
from vllm_stack.errors import InsufficientGpus, OutputError, PortError, UsageError
from vllm_stack.gpus.box import GpuBox
from vllm_stack.planning.cpu_share import split_cores
from vllm_stack.ports import port_uses


def test_each_worker_gets_its_own_slice_of_gpus_and_its_own_port() -> None:
    plan = plan_for(options(tensor_parallel_size=2), inventory())
    assert [(w.name, str(w.address), w.gpus) for w in plan.workers] == [
        ("worker-0", "127.0.0.1:5001", ("0", "1")),
        ("worker-1", "127.0.0.1:5002", ("2", "3")),
    ]


def test_workers_on_unix_sockets_take_no_ports_and_listen_in_a_directory_of_the_stack() -> None:
    plan = plan_for(options(worker_transport="unix", port=5001), inventory())
    assert [str(w.address) for w in plan.workers] == [
        "unix:/srv/stack/run/worker-0.sock",
        "unix:/srv/stack/run/worker-1.sock",
    ]
    assert plan.workers[1].argv[3:5] == ("--uds", "/srv/stack/run/worker-1.sock")
    assert not {"--host", "--port"} & set(plan.workers[0].argv)
    assert {use.owner for use in port_uses([plan.options])} == {"the proxy", "the admin door"}


@pytest.mark.parametrize("depth", [1, 5, 12, 20])
def test_every_socket_fits_into_a_socket_address_however_deep_the_stack_lies(depth: int) -> None:
    """107 bytes (unix(7)); supervisord adds its process id to its own."""
    plan = plan_for(
        options(out=Path("/srv" + "/deep1" * depth), workers=12, worker_transport="unix"),
        inventory(gpus=gpu_box(12)),
    )
    for worker in plan.workers:
        assert isinstance(worker.address, UnixAddress)
        assert len(worker.address.path) <= 107
        assert Path(worker.address.path).parent in plan.layout.directories


def test_too_few_gpus_are_refused_with_the_sentence_users_know() -> None:
    with pytest.raises(InsufficientGpus) as caught:
        plan_for(options(tensor_parallel_size=2), inventory(gpus=gpu_box(3)))
    assert str(caught.value) == (
        "Insufficient GPUs: Required 4, but only 3 are available. "
        "Please adjust '--tensor-parallel-size' or '--workers'"
    )


def test_a_box_without_a_driver_is_told_about_cpu_and_about_naming_gpus() -> None:
    box = GpuBox((), "no NVIDIA driver was found")
    with pytest.raises(InsufficientGpus, match="only 0 are available") as caught:
        plan_for(options(), inventory(gpus=box))
    assert "--device cpu" in str(caught.value)
    assert "--gpus" in str(caught.value)


def test_named_gpus_are_used_in_the_order_given_even_without_a_driver() -> None:
    plan = plan_for(options(gpus=("5", "0")), inventory(gpus=GpuBox((), "no driver")))
    assert [worker.gpus for worker in plan.workers] == [("5",), ("0",)]


def test_an_existing_mask_is_the_budget_token_by_token() -> None:
    plan = plan_for(options(), inventory(gpu_mask="3,1"))
    assert [worker.gpus for worker in plan.workers] == [("3",), ("1",)]


def test_an_empty_mask_means_no_gpu_and_the_refusal_names_it() -> None:
    with pytest.raises(InsufficientGpus, match="CUDA_VISIBLE_DEVICES=''"):
        plan_for(options(), inventory(gpu_mask=""))


def test_mig_devices_cannot_be_joined() -> None:
    with pytest.raises(UsageError, match="MIG"):
        plan_for(options(tensor_parallel_size=2, workers=1, gpus=("MIG-1", "MIG-2")), inventory())


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"port": 5002}, ("5002", "the proxy", "worker-1", "--port", "--base-port")),
        ({"admin_port": 8000}, ("8000", "the proxy", "the admin door", "--admin-port")),
        ({"base_port": 65535}, ("65536", "worker-1", "--base-port")),
    ],
)
def test_overlapping_and_impossible_ports_are_named_with_their_options(
    changes: dict[str, int], names: tuple[str, ...]
) -> None:
    with pytest.raises(PortError) as caught:
        plan_for(options(**changes), inventory())
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("out", ["/srv/a b", "/srv/a%b", "/srv/a'b", "/srv/a;b", "/srv/a\nb", "/srv/a#b"])
def test_an_output_directory_that_supervisord_would_misread_is_refused(out: str) -> None:
    with pytest.raises(OutputError, match="--out"):
        plan_for(options(out=Path(out)), inventory())


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({}, "127.0.0.1"),
        ({"api_keys": ("sk-1",)}, "0.0.0.0"),
        ({"host": "10.1.2.3"}, "10.1.2.3"),
        ({"host": "127.0.0.1", "api_keys": ("sk-1",)}, "127.0.0.1"),
    ],
)
def test_the_door_opens_to_the_network_only_with_a_key_or_when_told(
    changes: dict[str, object], host: str
) -> None:
    assert plan_for(options(**changes), inventory()).host == host


def test_a_stack_without_a_key_says_so_aloud() -> None:
    assert any("any key is accepted" in note for note in plan_for(options(), inventory()).notes)
    assert not any("key" in note for note in plan_for(options(api_keys=("k",)), inventory()).notes)


def test_what_follows_the_dashes_goes_to_vllm_last_so_that_it_wins() -> None:
    plan = plan_for(options(vllm_args=("--max-model-len", "8192")), inventory())
    assert plan.workers[0].argv[-2:] == ("--max-model-len", "8192")
    assert plan.workers[0].argv[:3] == ("/opt/vllm/bin/vllm", "serve", "org/model")


def test_the_revision_reaches_every_worker() -> None:
    plan = plan_for(options(revision="abc"), inventory())
    assert all("--revision abc" in " ".join(worker.argv) for worker in plan.workers)


def test_no_wait_is_shorter_than_the_one_it_contains() -> None:
    """supervisord may only kill after the wrapper, and the wrapper only after vLLM's own drain."""
    timings = plan_for(options(drain_timeout=40), inventory()).timings
    assert 40 < timings.stop_grace < timings.worker_stop_wait
    assert timings.proxy_stop_wait > 40
    assert timings.pool_idle < timings.worker_keep_alive


def test_cpu_workers_get_disjoint_cores_and_no_gpu() -> None:
    plan = plan_for(options(device="cpu"), inventory(gpus=GpuBox(())))
    assert [worker.cores for worker in plan.workers] == [(0, 1), (2, 3)]
    assert all(worker.gpus == () for worker in plan.workers)


@given(cores=st.integers(1, 64), workers=st.integers(1, 16))
def test_cores_are_all_used_and_shared_only_when_there_are_too_few(cores: int, workers: int) -> None:
    slices = split_cores(tuple(range(cores)), workers)
    assert len(slices) == workers
    used = [core for piece in slices for core in piece]
    if workers <= cores:
        assert used == list(range(cores))
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
    else:
        assert all(len(piece) == 1 for piece in slices)


def test_every_process_of_a_stack_is_named_after_its_directory() -> None:
    one = plan_for(options(out=Path("/srv/one")), inventory())
    two = plan_for(options(out=Path("/srv/two")), inventory())
    titles = [plan.workers[0].env["VLLM_PROCESS_NAME_PREFIX"] for plan in (one, two)]
    assert re.fullmatch(r"vllm-stack:one-[0-9a-f]{8}:worker-0", titles[0])
    assert titles[0] != titles[1]


@pytest.mark.parametrize(
    ("cores", "changes", "processes"),
    [
        (2, {"workers": 2}, 1),
        (64, {"workers": 1}, 1),
        (64, {"workers": 4}, 2),
        (128, {"workers": 7}, 4),
        (16, {"workers": 7}, 2),
        (7, {"workers": 7}, 1),
        (8, {"workers": 0, "upstreams": tuple(TcpAddress("10.0.0.1", port) for port in range(1, 9))}, 4),
        (1, {"workers": 0, "upstreams": (TcpAddress("10.0.0.1", 1),)}, 1),
        (2, {"workers": 2, "proxy_processes": 5}, 5),
    ],
)
def test_the_proxy_gets_processes_by_workers_and_cores(
    cores: int, changes: dict[str, Any], processes: int
) -> None:
    plan = plan_for(
        options(**changes), inventory(machine=machine(cores=tuple(range(cores))), gpus=gpu_box(8))
    )
    assert plan.proxy_processes == processes
