"""`--target ray`: what Ray is told, what stands in the place of workers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.boxes import GIB, findings_for, gpu_box, inventory, options, plan_for
from vllm_stack.address import TcpAddress
from vllm_stack.errors import PortError, RayError, StackError, UsageError
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.planning.auto import decide
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.member import Membership, member_plan
from vllm_stack.planning.option_rules import check_options
from vllm_stack.planning.plan import Plan, make_plan
from vllm_stack.ports import port_uses
from vllm_stack.ray.engine_kwargs import EngineKwargs
from vllm_stack.ray.installed import Ray
from vllm_stack.ray.node import read_node, start_argv
from vllm_stack.ray.serve_config import ROUTERS
from vllm_stack.render import render, render_member
from vllm_stack.worker.spec import read_spec

RAY = Ray("2.60.0", Path("/opt/vllm/bin/ray"), "0.29.0")
KEY = "sk-of-a-client"


def on_ray(**changes: Any) -> Options:
    return options(**{"target": "ray", "api_keys": (KEY,), **changes})


def with_ray(**changes: Any) -> Any:
    kwargs = EngineKwargs(changes.pop("kwargs", {}))
    return inventory(**{"ray": RAY, "engine_kwargs": kwargs, **changes})


def planned(**changes: Any) -> Plan:
    return plan_for(on_ray(**changes), with_ray())


def files_of(plan: Plan) -> dict[str, str]:
    return {file.path.name: file.text for file in render(plan)}


def serve_of(plan: Plan) -> dict[str, Any]:
    return dict(yaml.safe_load(files_of(plan)["serve.yaml"]))


def llm_of(plan: Plan) -> dict[str, Any]:
    return dict(serve_of(plan)["applications"][0]["args"]["llm_configs"][0])


def test_one_server_stands_for_all_workers_before_the_door() -> None:
    files = files_of(planned(aliases=("chat",)))
    proxy = json.loads(files["proxy.json"])
    assert proxy["models"] == [{"names": ["org/model", "chat"], "servers": ["ray"]}]
    assert proxy["workers"] == [{"name": "ray", "address": "127.0.0.1:5001", "gpus": ["0", "1", "2", "3"]}]
    assert "worker-0.json" not in files
    assert "programs=ray\n" in files["supervisord.conf"]
    assert "[program:proxy]" in files["supervisord.conf"]
    stack = json.loads(files["stack.json"])
    assert (stack["target"], stack["joins"]) == ("ray", None)


def test_the_wrapper_and_the_conductor_read_what_is_rendered(tmp_path: Path) -> None:
    plan = planned(start_timeout=120.0, wedge_timeout=9.0)
    path = tmp_path / "ray.json"
    path.write_text(files_of(plan)["ray.json"])
    spec = read_spec(path)
    assert (spec.what, spec.health, spec.limits.start, spec.limits.wedge) == ("Ray", "/health", 0, 0)
    assert spec.argv[1:] == ("-P", "-m", "vllm_stack.ray", "/srv/stack/ray.json")
    assert plan.ray is not None
    node = read_node(json.loads(path.read_text())["ray"])
    assert node == plan.ray.node
    assert node.start_timeout == 120


def test_no_secret_is_in_what_is_rendered_for_ray() -> None:
    files = files_of(planned())
    assert KEY not in "".join(files.values())
    assert "/srv/stack/secrets/ray-token" in files["ray.json"]
    assert json.loads(files["ray.json"])["secret_env"] == {}


def test_replicas_are_as_many_as_workers_or_as_the_load_asks_for() -> None:
    assert llm_of(planned(workers=3))["deployment_config"]["num_replicas"] == 3
    bounds = llm_of(planned(workers=1, most_workers=4, max_inflight_per_worker=16))["deployment_config"]
    assert "num_replicas" not in bounds
    assert bounds["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 16,
    }
    assert bounds["max_ongoing_requests"] == 16


def test_a_worker_stays_on_one_box_unless_it_has_stages() -> None:
    whole = llm_of(planned(workers=2, tensor_parallel_size=2))
    assert whole["placement_group_config"] == {"bundle_per_worker": {"GPU": 1}, "strategy": "STRICT_PACK"}
    assert whole["engine_kwargs"] == {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}
    staged = llm_of(planned(workers=1, tensor_parallel_size=2, pipeline_parallel_size=2))
    assert staged["placement_group_config"]["strategy"] == "PACK"
    assert staged["engine_kwargs"]["pipeline_parallel_size"] == 2


def test_without_gpus_replicas_take_cores_and_share_the_memory() -> None:
    llm = llm_of(plan_for(on_ray(device="cpu"), with_ray()))
    assert llm["placement_group_config"]["bundle_per_worker"] == {"CPU": 1}
    assert llm["engine_kwargs"]["enforce_eager"] is True
    assert llm["engine_kwargs"]["kv_cache_memory_bytes"] == GIB
    assert llm["deployment_config"]["ray_actor_options"] == {"num_cpus": 0}


def test_what_the_user_passed_on_wins_and_names_go_where_ray_has_them() -> None:
    found = with_ray(kwargs={"enforce_eager": False, "max_model_len": 8192})
    asked = on_ray(
        device="cpu",
        vllm_args=("--served-model-name", "a", "b", "--max-model-len", "8k", "--no-enforce-eager"),
    )
    plan = plan_for(asked, found)
    llm = llm_of(plan)
    assert llm["engine_kwargs"]["enforce_eager"] is False
    assert llm["engine_kwargs"]["max_model_len"] == 8192
    assert llm["model_loading_config"] == {"model_id": "a", "model_source": "org/model"}
    kwargs = serve_of(plan)["applications"][0]["args"]["ingress_cls_config"]["ingress_extra_kwargs"]
    assert kwargs == {"aliases": {"b": "a"}}


@pytest.mark.parametrize(("policy", "router"), [*ROUTERS.items(), ("prefix", None), ("least-loaded", None)])
def test_a_router_is_named_where_there_is_a_choice(policy: Any, router: str | None) -> None:
    told = llm_of(planned(policy=policy))["deployment_config"].get("request_router_config")
    assert told == (None if router is None else {"request_router_class": router})
    assert "request_router_config" not in llm_of(planned(policy=policy, workers=1))["deployment_config"]


def test_what_does_not_apply_on_ray_is_named() -> None:
    plan = planned(wedge_timeout=30.0, start_stagger="none", restart_delay_max=60.0, policy="random")
    notes = " ".join(plan.notes)
    for name in ("--wedge-timeout", "--start-stagger", "--restart-delay-max", "--policy random"):
        assert f"{name} does not apply" in notes
    assert "does not apply" not in " ".join(planned(workers=1).notes)


def test_every_model_of_a_file_is_an_llm_and_the_door_leaves_the_choice_to_ray() -> None:
    deployments = [
        Deployment(on_ray(workers=1), with_ray()),
        Deployment(on_ray(model="org/other", workers=1), with_ray(model=Model("org/other", "cache", None))),
    ]
    plan = make_plan(deployments)
    configs = serve_of(plan)["applications"][0]["args"]["llm_configs"]
    assert [one["model_loading_config"]["model_id"] for one in configs] == ["org/model", "org/other"]
    assert json.loads(files_of(plan)["proxy.json"])["models"] == [
        {"names": ["org/model", "org/other"], "servers": ["ray"]}
    ]


def test_the_head_lets_boxes_in_with_a_token_and_by_its_address() -> None:
    plan = planned(ray_host="10.0.0.1", workers=16)
    assert plan.ray is not None
    argv = start_argv(plan.ray.node, 5555)
    assert argv[argv.index("--node-ip-address") + 1] == "10.0.0.1"
    assert argv[argv.index("--port") + 1] == "6379"
    assert argv[argv.index("--num-gpus") + 1] == "4"
    assert argv[argv.index("--dashboard-host") + 1] == "127.0.0.1"
    assert plan.ray.env["RAY_AUTH_MODE"] == "token"
    assert plan.ray.env["RAY_AUTH_TOKEN_PATH"] == "/srv/stack/secrets/ray-token"
    assert [(one.replicas, one.stages, one.size, one.resource) for one in plan.ray.node.wanted] == [
        (16, 1, 1, "GPU")
    ]


def test_a_box_that_joins_has_one_program_and_no_door() -> None:
    membership = Membership(TcpAddress("10.0.0.1", 6379), 52365)
    plan = member_plan(options(model="", target="ray", gpus=("0", "2")), membership, with_ray())
    files = {file.path.name: file.text for file in render_member(plan)}
    assert "[program:ray]" in files["supervisord.conf"]
    assert "proxy" not in files["supervisord.conf"].partition("[group:workers]")[2]
    assert 'CUDA_VISIBLE_DEVICES="0,2"' in files["supervisord.conf"]
    assert json.loads(files["stack.json"])["joins"] == "10.0.0.1:6379"
    raw = json.loads(files["ray.json"])
    assert (raw["health"], raw["address"]) == ("/api/local_raylet_healthz", "127.0.0.1:52365")
    argv = start_argv(read_node(raw["ray"]), 5555)
    assert argv[-2:] == ["--address", "10.0.0.1:6379"]
    assert "--head" not in argv


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"target": "supervisord", "most_workers": 4}, ["--workers MIN:MAX", "--target ray"]),
        (
            {"target": "supervisord", "pipeline_parallel_size": 2},
            ["--pipeline-parallel-size", "--target ray"],
        ),
        ({"target": "supervisord", "ray_host": "10.0.0.1"}, ["--ray-host", "--target ray"]),
        ({"workers": 0, "upstreams": (TcpAddress("b", 1),)}, ["--workers 0"]),
        ({"upstreams": (TcpAddress("box2", 8000),)}, ["--upstream", "--workers 0"]),
        ({"worker_transport": "unix"}, ["--worker-transport unix"]),
        ({"ray_host": ""}, ["--ray-host is empty"]),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        check_options([on_ray(**changes)])
    for name in names:
        assert name in str(raised.value)


def test_what_is_automatic_counts_this_box_alone() -> None:
    with pytest.raises(UsageError, match="--workers auto counts the GPUs of this box"):
        decide(on_ray(ray_host="10.0.0.1", automatic=frozenset({"workers"})), with_ray())


@pytest.mark.parametrize("port", [10_002, 19_999])
@pytest.mark.parametrize("option", ["port", "admin_port", "base_port", "ray_port", "ray_dashboard_port"])
def test_a_port_that_ray_may_take_for_a_process_is_refused(port: int, option: str) -> None:
    with pytest.raises(PortError) as raised:
        planned(**{option: port})
    assert f"--{option.replace('_', '-')}" in str(raised.value)
    assert str(port) in str(raised.value)
    plan_for(options(**{option: port}), inventory())  # without Ray it is as good as any


def test_the_ports_of_ray_are_looked_at_like_all_others() -> None:
    used = {use.option: use.port for use in port_uses([on_ray()])}
    assert used == {
        "--port": 8000,
        "--admin-port": 9000,
        "--base-port": 5001,
        "--ray-port": 6379,
        "--ray-dashboard-port": 8265,
    }


def test_one_box_must_have_the_gpus_and_several_need_not() -> None:
    refused = findings_for(on_ray(workers=8), with_ray())["gpus"]
    assert refused.error is not None
    assert findings_for(on_ray(workers=2, pipeline_parallel_size=4), with_ray())["gpus"].error is not None
    told = findings_for(on_ray(workers=8, ray_host="10.0.0.1"), with_ray(gloo_interface="eth0"))
    assert told["gpus"].error is None
    assert "8 needed" in told["gpus"].value
    assert told["ray"].error is None


@pytest.mark.parametrize(
    ("found", "row", "names"),
    [
        (RayError("Ray is not installed beside vLLM"), "ray", ["not installed"]),
        (Ray("2.60.0", Path("/ray"), "0.29.0", ("pyarrow",)), "ray", ["lacks pyarrow", "vllm-stack[ray]"]),
        (Ray("2.50.0", Path("/ray"), "0.11.0"), "ray-version", ["2.50.0", "older than 2.60"]),
        (Ray("2.70.0", Path("/ray"), "0.33.0"), "ray-version", ["0.33.0", "newer than 0.32.0"]),
    ],
)
def test_a_ray_that_cannot_do_it_is_refused(found: Any, row: str, names: list[str]) -> None:
    finding = findings_for(on_ray(), with_ray(ray=found))[row]
    assert isinstance(finding.error, StackError)
    for name in names:
        assert name in str(finding.error)


def test_a_pair_that_nobody_tried_is_a_warning_and_the_one_that_was_is_none() -> None:
    assert findings_for(on_ray(), with_ray())["ray-version"].verdict == "ok"
    other = Ray("2.61.0", Path("/ray"), "0.31.0")
    assert findings_for(on_ray(), with_ray(ray=other))["ray-version"].verdict == "warning"


def test_options_of_the_server_that_ray_does_not_run_are_refused_by_name() -> None:
    kwargs = EngineKwargs({}, ("--api-server-count", "--allowed-origins"))
    asked = on_ray(vllm_args=("--api-server-count", "2", "--allowed-origins", '["*"]'))
    finding = findings_for(asked, with_ray(engine_kwargs=kwargs))["ray-options"]
    assert "--api-server-count, --allowed-origins" in str(finding.error)


def test_a_model_that_is_larger_than_the_box_is_refused_with_the_way_to_run_it_on_more() -> None:
    config = ModelConfig(
        attention_heads=64,
        kv_heads=8,
        head_size=128,
        layers=80,
        max_length=8192,
        dtype="bfloat16",
        weight_bytes=500 * GIB,
    )
    found = inventory(model=Model("org/model", "cache", config), gpus=gpu_box(4))
    finding = findings_for(options(workers=1, tensor_parallel_size=4), found)["gpu-memory"]
    told = str(finding.error)
    command = "vllm-stack render org/model --target ray --ray-host ADDRESS --tensor-parallel-size 4"
    assert f"2 boxes like this one hold it: {command} --pipeline-parallel-size 2" in told
    staged = on_ray(workers=1, tensor_parallel_size=4, pipeline_parallel_size=2, ray_host="10.0.0.1")
    again = with_ray(model=Model("org/model", "cache", config), gloo_interface="eth0")
    assert findings_for(staged, again)["gpu-memory"].error is None
