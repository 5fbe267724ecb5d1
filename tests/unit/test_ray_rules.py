"""What cannot be meant with Ray, or without it; its ports, its checks, and the way to more boxes than one."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boxes import (
    GIB,
    findings_for,
    gpu_box,
    inventory,
    options,
    plan_for,
    ray_inventory,
    typed,
)
from vllm_stack.address import TcpAddress
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import SKIPPABLE
from vllm_stack.errors import ModelError, PortError, RayError, StackError, UsageError, VllmCommandError
from vllm_stack.model.config import ModelConfig, parse_config
from vllm_stack.model.demand import Demand
from vllm_stack.model.find import Model
from vllm_stack.model.fit import weigh
from vllm_stack.options import Options
from vllm_stack.planning.auto import decide
from vllm_stack.planning.demand import demand_of
from vllm_stack.planning.more_boxes import on_more_boxes
from vllm_stack.planning.option_rules import check_options
from vllm_stack.ports import ANY_HOST, RAYS, port_uses
from vllm_stack.ray.engine_kwargs import EngineKwargs
from vllm_stack.ray.installed import Ray
from vllm_stack.verbs.joining import Head
from vllm_stack.vllm_command import VllmCommand

CONFIGS = Path(__file__).parent / "configs"


def on_ray(**changes: Any) -> Options:
    return options(**{"target": "ray", **changes})


# What options cannot mean together.


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"most_workers": 4}, "--workers MIN:MAX"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"ray_host": "10.0.0.1"}, "--ray-host"),
    ],
)
def test_what_only_ray_has_is_refused_without_it_and_taken_with_it(
    changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_options([options(**changes)])
    assert str(caught.value) == f"{name} is for Ray: add --target ray, or leave it out"
    check_options([on_ray(**changes)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": 0}, "--workers 0 leaves Ray nothing to run"),
        ({"workers": 0, "upstreams": (TcpAddress("box2", 8000),)}, "--workers 0 leaves Ray nothing to run"),
        ({"upstreams": (TcpAddress("box2", 8000),)}, "--upstream and --target ray exclude each other"),
        ({"worker_transport": "unix"}, "--worker-transport unix has no counterpart on Ray: leave it out"),
        ({"ray_host": ""}, "--ray-host is empty"),
    ],
)
def test_what_ray_has_not_is_refused_with_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_options([on_ray(**changes)])
    assert str(caught.value).startswith(said)


def test_an_empty_address_of_the_head_is_refused_without_ray_too() -> None:
    with pytest.raises(UsageError, match="--ray-host is empty"):
        check_options([options(ray_host="")])


def test_of_several_models_the_one_is_named_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="b: --workers 0 leaves Ray nothing to run"):
        check_options([on_ray(model="a"), on_ray(model="b", workers=0)])


@pytest.mark.parametrize("name", ["workers", "tensor_parallel_size"])
def test_what_is_automatic_counts_this_box_and_is_refused_for_several(name: str) -> None:
    automatic = frozenset({name})
    with pytest.raises(UsageError) as caught:
        decide(on_ray(ray_host="10.0.0.1", automatic=automatic), ray_inventory())
    spelled = "--" + name.replace("_", "-")
    assert str(caught.value) == (f"{spelled} auto counts the GPUs of this box: with --ray-host say how many")
    decided, _ = decide(on_ray(automatic=automatic), ray_inventory())
    assert (decided.workers, decided.automatic) == (4 if name == "workers" else 2, frozenset())


# Ports.


def test_the_ports_of_the_head_are_named_and_workers_have_none() -> None:
    used = {use.option: (use.port, use.host) for use in port_uses([on_ray(workers=3)])}
    assert used == {
        "--port": (8000, "127.0.0.1"),
        "--admin-port": (9000, "127.0.0.1"),
        "--base-port": (5001, "127.0.0.1"),
        "--ray-port": (6379, ANY_HOST),
        "--ray-dashboard-port": (8265, "127.0.0.1"),
    }
    assert not {use.option for use in port_uses([options()])} & {"--ray-port", "--ray-dashboard-port"}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"base_port": 6379}, ("6379", "Ray Serve", "the head of the Ray cluster", "--ray-port")),
        ({"ray_port": 8000}, ("8000", "the proxy", "the head of the Ray cluster", "--ray-port")),
        ({"ray_dashboard_port": 9000}, ("9000", "the admin door", "Ray's dashboard", "--ray-dashboard-port")),
        ({"ray_dashboard_port": 6379}, ("6379", "Ray's dashboard", "--ray-port", "--ray-dashboard-port")),
    ],
)
def test_ports_of_ray_that_are_given_twice_are_named_with_their_options(
    changes: dict[str, int], names: tuple[str, ...]
) -> None:
    with pytest.raises(PortError) as caught:
        plan_for(on_ray(**changes), ray_inventory())
    assert [name for name in names if name not in str(caught.value)] == []
    plan_for(options(ray_port=8000, ray_dashboard_port=8000), inventory())


@pytest.mark.parametrize("port", [RAYS.start, RAYS[-1]])
@pytest.mark.parametrize("name", ["port", "admin_port", "base_port", "ray_port", "ray_dashboard_port"])
def test_a_port_that_ray_may_take_for_a_process_is_refused(port: int, name: str) -> None:
    with pytest.raises(PortError) as caught:
        plan_for(on_ray(**{name: port}), ray_inventory())
    assert f"Port {port}" in str(caught.value)
    assert f"change --{name.replace('_', '-')}" in str(caught.value)
    plan_for(options(**{name: port}), inventory())  # without Ray it is as good as any


def test_the_ports_beside_those_of_rays_processes_can_be_had() -> None:
    plan_for(on_ray(port=RAYS.start - 1, admin_port=RAYS.stop), ray_inventory())


# The checks.


def row(name: str, given: Options | None = None, **facts: Any) -> Finding | None:
    return findings_for(given or on_ray(), ray_inventory(**facts)).get(name)


def found(name: str, given: Options | None = None, **facts: Any) -> Finding:
    finding = row(name, given, **facts)
    assert finding is not None
    return finding


def test_a_box_with_a_ray_that_goes_with_its_vllm_is_well() -> None:
    findings = findings_for(on_ray(), ray_inventory())
    assert {name: finding for name, finding in findings.items() if finding.verdict != "ok"} == {}
    assert found("ray").value == "2.60.0 (/opt/vllm/bin/ray)"
    assert found("ray-version").value == "Ray 2.60.0, vLLM 0.32.0"


def test_where_ray_runs_nothing_nobody_asks_for_it() -> None:
    rows = findings_for(options(), inventory())
    assert not {"ray", "ray-version", "ray-options"} & set(rows)


def test_without_a_vllm_nothing_is_said_of_the_ray_beside_it() -> None:
    rows = findings_for(on_ray(), ray_inventory(vllm=VllmCommandError("no vllm")))
    assert rows["vllm"].verdict == "refused"
    assert not {"ray", "ray-version"} & set(rows)


def test_a_ray_that_is_missing_or_in_pieces_is_refused_with_what_to_install() -> None:
    nowhere = found("ray", ray=RayError("Ray is not installed beside vLLM"))
    assert (nowhere.verdict, nowhere.advice) == ("refused", "Ray is not installed beside vLLM")
    assert row("ray-version", ray=RayError("Ray is not installed beside vLLM")) is None
    bare = found("ray", ray=Ray("2.60.0", Path("/ray"), missing=("fastapi", "pyarrow")))
    assert bare.verdict == "refused"
    assert "lacks fastapi, pyarrow" in bare.advice
    assert "vllm-stack[ray]" in bare.advice


def test_the_address_of_the_head_must_be_one_of_this_box() -> None:
    given = on_ray(ray_host="10.9.9.9")
    elsewhere = found("ray", given)
    assert elsewhere.verdict == "refused"
    assert "--ray-host 10.9.9.9 is no address of this box" in elsewhere.advice
    assert found("ray", given, gloo_interface="eth0").verdict == "ok"


@pytest.mark.parametrize(
    ("version", "made_for", "vllm", "verdict", "said"),
    [
        ("2.60.0", "0.29.0", "0.32.0", "ok", ""),
        ("2.61.0", "0.33.0", "0.33.0", "ok", ""),
        ("2.50.0", "0.11.0", "0.32.0", "refused", "Ray 2.50.0 is older than 2.60"),
        ("2.70.0", "0.33.0", "0.32.0", "refused", "0.33.0, which is newer than 0.32.0"),
        ("2.61.0", "0.31.0", "0.32.0", "warning", "was not tried"),
        ("2.60.0", None, None, "warning", "taken on trust"),
    ],
)
def test_a_pair_of_ray_and_vllm_is_judged_by_what_was_tried(
    version: str, made_for: str | None, vllm: str | None, verdict: str, said: str
) -> None:
    ray = Ray(version, Path("/ray"), made_for)
    finding = found("ray-version", ray=ray, vllm=VllmCommand(("/opt/vllm/bin/vllm",), vllm))
    assert (finding.verdict, said in finding.advice) == (verdict, True)


def test_options_of_vllms_server_are_refused_by_name_and_those_of_its_engine_taken() -> None:
    given = on_ray(vllm_args=("--max-model-len", "8k", "--api-server-count", "2"))
    names = ("--api-server-count", "--allowed-origins")
    lost = found("ray-options", given, engine_kwargs=EngineKwargs({"max_model_len": 8192}, names))
    assert lost.verdict == "refused"
    assert "--api-server-count, --allowed-origins: no counterpart on Ray" in lost.advice
    assert found("ray-options", given).verdict == "ok"
    wrong = found("ray-options", given, engine_kwargs=UsageError("After `--`: no such option"))
    assert (wrong.verdict, wrong.advice) == ("refused", "After `--`: no such option")
    assert row("ray-options", on_ray()) is None


def test_only_the_word_about_versions_can_be_left_out() -> None:
    assert {"ray", "ray-version", "ray-options"} & set(SKIPPABLE) == {"ray-version"}
    old = Ray("2.50.0", Path("/ray"))
    given = on_ray(skip_checks=("ray-version",))
    assert found("ray-version", given, ray=old).verdict == "skipped"


def test_one_box_must_have_the_gpus_and_several_need_not() -> None:
    assert found("gpus", on_ray(workers=8)).verdict == "refused"
    assert found("gpus", on_ray(workers=2, pipeline_parallel_size=4)).verdict == "refused"
    apart = found("gpus", on_ray(workers=8, ray_host="10.0.0.1"), gloo_interface="eth0")
    assert (apart.verdict, "8 needed" in apart.value, "all boxes" in apart.value) == ("ok", True, True)
    here = found("gpus", on_ray(workers=2, pipeline_parallel_size=2))
    assert (here.verdict, "all boxes" in here.value) == ("ok", False)


# More boxes than one.


def large(name: str, weights: int) -> ModelConfig:
    raw = json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))
    return replace(parse_config(raw), weight_bytes=weights)


LARGE = [
    ("llama-3.1-70b", 141_107_412_992, 1, ("--max-model-len", "8192")),
    ("qwen2.5-72b", 145_412_407_296, 1, ()),
    ("deepseek-v3", 688_586_727_753, 8, ("--max-model-len", "4096", "--trust-remote-code")),
    ("llama-3.1-70b", 141_107_412_992, 1, ("--max-model-len", "4096", "--chat-template", "/a dir/it's")),
]


def command_in(sentence: str) -> list[str]:
    """Give the words of the command at the end of a refusal, as a shell splits them."""
    return shlex.split(sentence[sentence.index("vllm-stack render") :])


@pytest.mark.parametrize(("name", "weights", "gpus", "args"), LARGE)
def test_a_model_too_large_for_the_box_is_refused_with_the_command_that_runs_it_on_more(
    name: str, weights: int, gpus: int, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in os.environ:
        if variable.startswith("VLLM_STACK"):
            monkeypatch.delenv(variable)
    config = large(name, weights)
    model = Model("org/model", "cache", config, weights)
    asked = options(workers=1, tensor_parallel_size=gpus, revision="abc", vllm_args=args)
    finding = findings_for(asked, inventory(model=model, gpus=gpu_box(gpus)))["gpu-memory"]
    assert finding.verdict == "refused"
    words = command_in(finding.advice)
    assert words[:7] == ["vllm-stack", "render", "org/model", "--target", "ray", "--ray-host", "ADDRESS"]
    (given,) = typed(*words[2:])
    assert (given.model, given.revision, given.vllm_args) == ("org/model", "abc", args)
    assert (given.on_ray, given.ray_host, given.workers) == (True, "ADDRESS", 1)
    assert given.pipeline_parallel_size > 1
    assert given.tensor_parallel_size <= gpus
    demand = demand_of(given, 80 * GIB, gpus)
    assert weigh(config, demand).verdict == "fits"
    fewer = replace(demand, stages=demand.stages - 1)
    assert weigh(config, fewer).verdict != "fits"
    there = ray_inventory(model=model, gpus=gpu_box(gpus), gloo_interface="eth0")
    assert findings_for(given, there)["gpu-memory"].verdict == "ok"


def test_the_sentence_says_how_many_boxes_and_what_to_type() -> None:
    config = ModelConfig(
        attention_heads=64,
        kv_heads=8,
        head_size=128,
        layers=80,
        max_length=8192,
        dtype="bfloat16",
        weight_bytes=500 * GIB,
    )
    machine = inventory(model=Model("org/model", "cache", config), gpus=gpu_box(4))
    advice = findings_for(options(workers=1, tensor_parallel_size=4), machine)["gpu-memory"].advice
    assert advice.endswith(
        "; 2 boxes like this one hold it: vllm-stack render org/model --target ray --ray-host ADDRESS "
        "--tensor-parallel-size 4 --pipeline-parallel-size 2"
    )


def test_auto_that_finds_no_size_names_the_same_way_out() -> None:
    config = large("llama-3.1-70b", 141_107_412_992)
    machine = inventory(model=Model("org/model", "cache", config), gpus=gpu_box(2))
    automatic = options(workers=1, automatic=frozenset({"tensor_parallel_size"}))
    with pytest.raises(ModelError) as caught:
        decide(automatic, machine)
    words = command_in(str(caught.value))
    assert words[-4:] == ["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"]


def test_nobody_is_sent_to_more_boxes_who_needs_none_or_is_there_or_whom_they_would_not_help() -> None:
    config = large("llama-3.1-70b", 141_107_412_992)
    one = Demand(size=1, memory_total=80 * GIB, share=0.92, max_length=8192, most_gpus=1)
    assert on_more_boxes(config, one, options()) != ""
    assert on_more_boxes(config, replace(one, most_gpus=8), options()) == ""
    assert on_more_boxes(config, one, on_ray()) == ""
    assert on_more_boxes(config, replace(one, memory_total=GIB), options()) == ""
    for unknown in ({"weight_bytes": None}, {"attention_heads": None}):
        assert on_more_boxes(replace(config, **unknown), one, options()) == ""


# Whom a box joins.


def head(text: str) -> TcpAddress:
    return Head().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 6379),
        ("10.0.0.1:7379", "10.0.0.1", 7379),
        ("gpu-1.example.com", "gpu-1.example.com", 6379),
        ("gpu_1:1", "gpu_1", 1),
        ("[fd00::1]:7379", "fd00::1", 7379),
        ("[fd00::1]", "fd00::1", 6379),
        ("fd00::1", "fd00::1", 6379),
        ("::1", "::1", 6379),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
    ],
)
def test_a_head_is_a_host_with_or_without_its_port(text: str, host: str, port: int) -> None:
    assert head(text) == TcpAddress(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":6379",
        "host:",
        "host:0",
        "host:65536",
        "host:six",
        "host:\u0663",
        "http://host:6379",
        "host:1:2",
        "[host]:1",
        "[]:1",
        "[fd00::1",
        "fd00::1]",
        "[fd00::1]7379",
        "a b",
        "host\n:1",
        "host/path",
    ],
)
def test_what_is_no_address_of_a_head_is_refused_by_name(text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        head(text)
    assert f"{text!r} is no address" in caught.value.message


def test_a_head_that_was_read_is_taken_as_it_is() -> None:
    assert Head().convert(TcpAddress("h", 1), None, None) == TcpAddress("h", 1)


HOSTS = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
    | st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)
)


@given(HOSTS, st.integers(1, 65535))
def test_an_address_is_read_back_as_it_is_spelled(host: str, port: int) -> None:
    assert head(str(TcpAddress(host, port))) == TcpAddress(host, port)
    assert head(host) == TcpAddress(host, 6379)


@given(st.text(max_size=20) | st.text("[]:0123456789abcdef.%/ ", max_size=20))
def test_whatever_is_typed_gives_an_address_that_can_be_written_down_or_a_refusal(text: str) -> None:
    try:
        found = head(text)
    except click.BadParameter:
        return
    assert 1 <= found.port <= 65535
    assert found.host
    assert not set(found.host) & set("[]/ \n")
    assert head(str(found)) == found
    if ":" in found.host:
        ipaddress.IPv6Address(found.host)


def test_a_refusal_of_the_checks_is_one_line_that_render_would_say_too() -> None:
    for ray in (RayError("Ray is not installed beside vLLM"), Ray("2.50.0", Path("/ray"))):
        errors = [one.error for one in findings_for(on_ray(), ray_inventory(ray=ray)).values() if one.error]
        assert len(errors) == 1
        assert isinstance(errors[0], StackError)
        assert "\n" not in str(errors[0])
