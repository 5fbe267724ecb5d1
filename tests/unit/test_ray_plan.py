"""A stack that Ray runs: one program where workers stand, one server at the door, and what Ray is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from supervisor.options import ServerOptions

from tests.unit.boxes import GIB, amd_box, gpu_box, machine, options, plan_for, ray_inventory, typed
from vllm_stack.address import TcpAddress
from vllm_stack.checks.run import run_checks
from vllm_stack.errors import InsufficientGpus, RayError
from vllm_stack.files import File
from vllm_stack.gpus.box import GpuBox
from vllm_stack.layout import Layout
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.member import Membership, member_plan
from vllm_stack.planning.plan import Plan, make_plan
from vllm_stack.planning.sharing import share_out
from vllm_stack.ray.engine_kwargs import EngineKwargs
from vllm_stack.ray.node import AGENT_HEALTH, Node, read_node, start_argv
from vllm_stack.ray.resources import Wanted
from vllm_stack.render import render, render_member
from vllm_stack.worker.spec import Spec, read_spec

HEAD = Membership(TcpAddress("10.0.0.1", 6379), 52365)


def on_ray(**changes: Any) -> Options:
    return options(**{"target": "ray", **changes})


def head_of(plan: Plan) -> Node:
    assert plan.ray is not None
    return plan.ray.node


def texts_of(files: Sequence[File]) -> dict[str, str]:
    return {file.path.name: file.text for file in files}


def told(plan: Plan) -> list[Any]:
    """Give what serve.yaml says of each model."""
    config = yaml.safe_load(texts_of(render(plan))["serve.yaml"])
    models: list[Any] = config["applications"][0]["args"]["llm_configs"]
    return models


def options_in(text: str) -> tuple[Options, ...]:
    """Give the options that `render -f` makes of a stack file."""
    Path("stack.toml").write_text(text)
    return typed("-f", "stack.toml")


def deployments(models: Sequence[Options], **facts: Any) -> tuple[Deployment, ...]:
    """Give each model the same machine, and share it out."""
    config = ModelConfig(attention_heads=32, kv_heads=8)
    made = [
        Deployment(one, ray_inventory(model=Model(one.model, "cache", config), **facts)) for one in models
    ]
    return share_out(made)[0]


def parse_supervisord_conf(plan: Plan, text: str, monkeypatch: pytest.MonkeyPatch) -> ServerOptions:
    """Read the file with supervisord's own parser."""
    for directory in plan.layout.directories:
        directory.mkdir(parents=True, exist_ok=True)
    path = plan.layout.supervisord_conf
    path.write_text(text, "utf-8")
    monkeypatch.setattr(sys, "argv", ["supervisord", "-c", str(path)])
    parsed = ServerOptions()
    parsed.realize(["-c", str(path)])
    return parsed


def spec_of(files: Sequence[File], tmp_path: Path) -> tuple[Spec, Node]:
    """Read ray.json as the wrapper does, and as the program does that it starts."""
    path = tmp_path / "ray.json"
    path.write_text(texts_of(files)["ray.json"], "utf-8")
    return read_spec(path), read_node(json.loads(path.read_text("utf-8"))["ray"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where a stack file can be, with no variables of ours."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("VLLM_STACK", "CUDA")):
            monkeypatch.delenv(name)


# The files.


def test_ray_takes_the_place_of_the_workers_among_the_files() -> None:
    before = set(texts_of(render(plan_for(options(), ray_inventory()))))
    after = set(texts_of(render(plan_for(on_ray(), ray_inventory()))))
    assert before - after == {"worker-0.json", "worker-1.json"}
    assert after - before == {"ray.json", "serve.yaml"}


def test_the_same_plan_gives_the_same_bytes_for_the_owner_alone() -> None:
    plan = plan_for(on_ray(), ray_inventory())
    assert render(plan) == render(plan)
    assert all(file.mode == 0o600 for file in render(plan))


def test_supervisord_runs_the_door_and_one_program_that_has_all_gpus_of_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(on_ray(out=tmp_path / "out"), ray_inventory())
    text = texts_of(render(plan))["supervisord.conf"]
    parsed = parse_supervisord_conf(plan, text, monkeypatch)
    programs = {one.name: one for group in parsed.process_group_configs for one in group.process_configs}
    assert set(programs) == {"ray", "proxy"}
    assert programs["ray"].environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert programs["ray"].command.endswith(f"-m vllm_stack.worker {tmp_path}/out/ray.json")


def test_the_proxy_has_one_server_that_all_names_lead_to() -> None:
    plan = plan_for(on_ray(aliases=("chat", "small"), base_port=7001), ray_inventory())
    proxy = json.loads(texts_of(render(plan))["proxy.json"])
    assert proxy["models"] == [{"names": ["org/model", "chat", "small"], "servers": ["ray"]}]
    assert [(one["name"], one["address"]) for one in proxy["workers"]] == [("ray", "127.0.0.1:7001")]
    stack = json.loads(texts_of(render(plan))["stack.json"])
    assert (stack["target"], stack["joins"]) == ("ray", None)
    assert [one["name"] for one in stack["workers"]] == ["ray"]
    assert stack["models"][0]["servers"] == ["ray"]


def test_serve_yaml_is_the_very_value_that_the_head_deploys_without_aliases_of_yaml() -> None:
    plan = plan_for(on_ray(), ray_inventory())
    texts = texts_of(render(plan))
    assert yaml.safe_load(texts["serve.yaml"]) == json.loads(texts["ray.json"])["ray"]["serve"]
    assert "&id" not in texts["serve.yaml"]


def test_ray_json_is_read_by_the_wrapper_and_by_the_program_that_it_starts(tmp_path: Path) -> None:
    plan = plan_for(on_ray(tensor_parallel_size=2, restart_delay=7.0), ray_inventory())
    spec, node = spec_of(render(plan), tmp_path)
    assert (spec.name, spec.what, spec.health) == ("ray", "Ray", "/health")
    assert spec.argv == ("/opt/stack/bin/python", "-P", "-m", "vllm_stack.ray", "/srv/stack/ray.json")
    assert (spec.gpus, spec.restart_delay, spec.secret_env) == (("0", "1", "2", "3"), 7.0, {})
    assert node == head_of(plan)
    assert node.wanted == (Wanted(replicas=2, stages=1, size=2, resource="GPU"),)


def test_what_ray_judges_itself_the_wrapper_leaves_to_it(tmp_path: Path) -> None:
    plan = plan_for(on_ray(wedge_timeout=60.0, start_timeout=600.0, start_stagger="5"), ray_inventory())
    spec, node = spec_of(render(plan), tmp_path)
    assert (spec.limits.start, spec.limits.wedge, spec.stagger.mode) == (0, 0, "none")
    assert node.start_timeout == 600.0


def test_nobody_comes_into_the_cluster_without_the_token_which_stands_in_no_file() -> None:
    plan = plan_for(on_ray(), ray_inventory())
    (head,) = plan.workers
    assert head.env["RAY_AUTH_MODE"] == "token"
    assert head.env["RAY_AUTH_TOKEN_PATH"] == "/srv/stack/secrets/ray-token"
    assert "ray-token" not in {file.path.name for file in render(plan)}


def test_a_stack_without_ray_knows_nothing_of_it(tmp_path: Path) -> None:
    texts = texts_of(render(plan_for(options(), ray_inventory(ray=None, engine_kwargs=None))))
    stack = json.loads(texts["stack.json"])
    assert (stack["target"], stack["joins"]) == ("supervisord", None)
    assert "ray" not in json.loads(texts["worker-0.json"])
    assert read_spec(_written(tmp_path / "worker-0.json", texts["worker-0.json"])).what == "vLLM"


def _written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


# What the box gives.


@pytest.mark.parametrize(
    ("changes", "facts", "gpus"),
    [
        ({}, {}, ("0", "1", "2", "3")),
        ({"gpus": ("3", "1")}, {}, ("3", "1")),
        ({}, {"gpu_mask": "2,0"}, ("2", "0")),
        ({}, {"gpus": amd_box(2)}, ("0", "1")),
        ({"gpus": ("1", "0")}, {"gpus": amd_box(4)}, ("1", "0")),
        ({"device": "cpu"}, {"gpus": gpu_box(4)}, ()),
    ],
)
def test_the_box_gives_the_gpus_that_it_may_use(
    changes: Mapping[str, Any], facts: Mapping[str, Any], gpus: tuple[str, ...]
) -> None:
    plan = plan_for(on_ray(**changes), ray_inventory(**facts))
    assert plan.workers[0].gpus == gpus
    assert head_of(plan).gpus == len(gpus)
    assert head_of(plan).cpus == 4


def test_gpus_that_models_name_for_themselves_are_given_together() -> None:
    models = [on_ray(model="a", workers=1, gpus=("0",)), on_ray(model="b", workers=1, gpus=("2", "3"))]
    plan = make_plan(deployments(models))
    assert plan.workers[0].gpus == ("0", "2", "3")
    assert head_of(plan).gpus == 3


def test_on_a_cpu_replicas_take_cores_and_know_what_to_make_of_them() -> None:
    plan = plan_for(on_ray(device="cpu"), ray_inventory(gpus=GpuBox((), "no driver")))
    (model,) = told(plan)
    assert model["placement_group_config"]["bundle_per_worker"] == {"CPU": 1}
    assert model["engine_kwargs"]["enforce_eager"] is True
    assert model["engine_kwargs"]["kv_cache_memory_bytes"] == GIB
    assert model["deployment_config"]["ray_actor_options"] == {"num_cpus": 0}
    assert model["runtime_env"] == {"env_vars": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}}
    assert head_of(plan).wanted[0].resource == "CPU"
    assert "kv_cache_memory_bytes" not in told(plan_for(on_ray(), ray_inventory()))[0]["engine_kwargs"]


def test_what_the_user_passes_on_wins_over_what_is_ours() -> None:
    said = EngineKwargs({"enforce_eager": False, "gpu_memory_utilization": 0.3, "revision": "mine"})
    plan = plan_for(on_ray(device="cpu", revision="ours"), ray_inventory(engine_kwargs=said))
    kwargs = told(plan)[0]["engine_kwargs"]
    assert (kwargs["enforce_eager"], kwargs["revision"]) == (False, "mine")
    assert "kv_cache_memory_bytes" not in kwargs


def test_names_given_to_vllm_go_where_ray_has_them() -> None:
    asked = on_ray(vllm_args=("--served-model-name", "a", "b", "--max-model-len", "8k"))
    plan = plan_for(asked, ray_inventory(engine_kwargs=EngineKwargs({"max_model_len": 8192})))
    (model,) = told(plan)
    assert model["model_loading_config"] == {"model_id": "a", "model_source": "org/model"}
    assert model["engine_kwargs"]["max_model_len"] == 8192
    config = yaml.safe_load(texts_of(render(plan))["serve.yaml"])["applications"][0]["args"]
    assert config["ingress_cls_config"]["ingress_extra_kwargs"] == {"aliases": {"b": "a"}}


def test_the_revision_and_the_name_of_a_session_reach_ray() -> None:
    plan = plan_for(on_ray(revision="abc", policy="session", session_header="x-chat"), ray_inventory())
    assert told(plan)[0]["engine_kwargs"]["revision"] == "abc"
    assert plan.workers[0].env["RAY_SERVE_SESSION_ID_HEADER_KEY"] == "x-chat"


def test_the_head_starts_ray_with_its_own_figures() -> None:
    head = plan_for(
        on_ray(ray_host="10.0.0.7", ray_port=7379, ray_dashboard_port=7265),
        ray_inventory(gloo_interface="eth1"),
    )
    argv = start_argv(head_of(head), 1234)
    assert argv[:3] == ["/opt/vllm/bin/ray", "start", "--block"]
    assert _value(argv, "--num-gpus") == "4"
    assert _value(argv, "--num-cpus") == "4"
    assert _value(argv, "--node-ip-address") == "10.0.0.7"
    assert _value(argv, "--port") == "7379"
    assert _value(argv, "--dashboard-port") == "7265"
    assert _value(argv, "--dashboard-host") == "127.0.0.1"
    assert "--head" in argv
    assert "--address" not in argv
    assert head.workers[0].env["GLOO_SOCKET_IFNAME"] == "eth1"


def _value(argv: Sequence[str], option: str) -> str:
    return argv[argv.index(option) + 1]


# More than one box.


def test_a_stack_on_several_boxes_may_ask_for_more_gpus_than_this_one_has() -> None:
    asked = {"workers": 3, "tensor_parallel_size": 4}
    with pytest.raises(InsufficientGpus, match="Required 12"):
        _checked(on_ray(**asked), gpus=gpu_box(4))
    plan = _checked(on_ray(**asked, ray_host="10.0.0.7"), gpus=gpu_box(4), gloo_interface="eth0")
    assert head_of(plan).wanted == (Wanted(replicas=3, stages=1, size=4, resource="GPU"),)
    assert head_of(plan).gpus == 4


def test_stages_may_each_be_on_a_box_of_one_gpu() -> None:
    asked = on_ray(workers=1, pipeline_parallel_size=2, ray_host="10.0.0.7")
    plan = _checked(asked, gpus=gpu_box(1), gloo_interface="eth0")
    assert head_of(plan).wanted == (Wanted(replicas=1, stages=2, size=1, resource="GPU"),)


def test_several_models_need_no_gpu_each_on_the_first_of_several_boxes() -> None:
    models = [on_ray(model=name, workers=1, ray_host="10.0.0.7") for name in ("a", "b", "c")]
    made = deployments(models, gpus=gpu_box(1), gloo_interface="eth0")
    assert {row: found.advice for row, found in run_checks(made).items() if found.verdict == "refused"} == {}
    assert len(head_of(make_plan(made)).wanted) == 3


def test_several_models_on_one_box_still_share_it_out() -> None:
    models = [on_ray(model=name, workers=1) for name in ("a", "b")]
    assert run_checks(deployments(models, gpus=gpu_box(1)))["gpus b"].verdict == "refused"


def _checked(given: Options, **facts: Any) -> Plan:
    """Plan what the checks let pass."""
    made = Deployment(given, ray_inventory(**facts))
    for finding in run_checks([made]).values():
        if finding.error is not None:
            raise finding.error
    return make_plan([made])


def test_bounds_wait_for_the_least_of_them_and_name_both() -> None:
    plan = plan_for(on_ray(workers=1, most_workers=3), ray_inventory())
    assert head_of(plan).wanted[0].replicas == 1
    bounds = told(plan)[0]["deployment_config"]["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (1, 3)


def test_without_a_ray_there_is_no_plan() -> None:
    with pytest.raises(RayError, match="not installed"):
        plan_for(on_ray(), ray_inventory(ray=RayError("Ray is not installed beside vLLM")))


# What is said.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"wedge_timeout": 60.0}, "--wedge-timeout does not apply"),
        ({"start_stagger": "10"}, "--start-stagger does not apply"),
        ({"restart_delay_max": 300.0}, "--restart-delay-max does not apply"),
        ({"policy": "random"}, "--policy random does not apply"),
        ({"policy": "prefix"}, "what a prefix has in its cache does not count"),
        ({"policy": "least-loaded"}, "the less busy of two"),
        ({"model": "/models/m", "ray_host": "10.0.0.7"}, "must be in the same directory on every box"),
    ],
)
def test_what_ray_has_no_counterpart_for_is_named_once_it_was_asked_for(
    changes: Mapping[str, Any], named: str
) -> None:
    notes = plan_for(on_ray(**changes), ray_inventory(gloo_interface="eth0")).notes
    assert len([note for note in notes if named in note]) == 1


def test_nothing_is_said_of_what_was_not_asked_for() -> None:
    quiet = plan_for(on_ray(policy="session", api_keys=("k",)), ray_inventory())
    assert quiet.notes == ()
    one = plan_for(on_ray(workers=1, api_keys=("k",)), ray_inventory())
    assert one.notes == ()
    on_this_box = plan_for(on_ray(workers=1, model="/models/m", api_keys=("k",)), ray_inventory())
    assert on_this_box.notes == ()


# Many models.


def test_many_models_of_a_file_are_one_server_and_one_config_of_ray() -> None:
    models = options_in(
        'target = "ray"\nray-host = "10.0.0.7"\nout = "/srv/stack"\n'
        '[[model]]\nmodel = "org/large"\naliases = ["chat"]\ntensor-parallel-size = 4\n'
        "pipeline-parallel-size = 2\n"
        '[[model]]\nmodel = "org/small"\nworkers = "1:3"\naliases = ["fast"]\n'
    )
    plan = make_plan(deployments(models, gloo_interface="eth0"))
    assert [one["model_loading_config"]["model_source"] for one in told(plan)] == ["org/large", "org/small"]
    assert [one["placement_group_config"]["strategy"] for one in told(plan)] == ["PACK", "STRICT_PACK"]
    assert head_of(plan).wanted == (
        Wanted(replicas=1, stages=2, size=4, resource="GPU"),
        Wanted(replicas=1, stages=1, size=1, resource="GPU"),
    )
    texts = texts_of(render(plan))
    (choice,) = json.loads(texts["proxy.json"])["models"]
    assert choice == {"names": ["org/large", "chat", "org/small", "fast"], "servers": ["ray"]}
    config = yaml.safe_load(texts["serve.yaml"])["applications"][0]["args"]["ingress_cls_config"]
    assert config["ingress_extra_kwargs"]["aliases"] == {"chat": "org/large", "fast": "org/small"}
    stack = json.loads(texts["stack.json"])
    assert [(one["model"], one["names"], one["servers"]) for one in stack["models"]] == [
        ("org/large", ["org/large", "chat"], ["ray"]),
        ("org/small", ["org/small", "fast"], ["ray"]),
    ]


# A box that joins.


def test_a_box_that_joins_has_one_program_and_no_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = member_plan(on_ray(model="", out=tmp_path / "out"), HEAD, ray_inventory())
    assert not plan.has_door
    files = render_member(plan)
    assert set(texts_of(files)) == {"supervisord.conf", "ray.json", "stack.json"}
    parsed = parse_supervisord_conf(plan, texts_of(files)["supervisord.conf"], monkeypatch)
    programs = [one for group in parsed.process_group_configs for one in group.process_configs]
    assert [one.name for one in programs] == ["ray"]
    assert programs[0].environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert "[program:proxy]" not in texts_of(files)["supervisord.conf"]


def test_a_box_that_joins_is_well_when_its_own_agent_says_so(tmp_path: Path) -> None:
    plan = member_plan(on_ray(model="", ray_host="10.0.0.8"), HEAD, ray_inventory(gloo_interface="eth0"))
    spec, node = spec_of(render_member(plan), tmp_path)
    assert (spec.health, str(spec.address)) == (AGENT_HEALTH, "127.0.0.1:52365")
    assert node == head_of(plan)
    assert (node.joins, node.serve, node.wanted) == ("10.0.0.1:6379", None, ())
    argv = start_argv(node, 1234)
    assert _value(argv, "--address") == "10.0.0.1:6379"
    assert _value(argv, "--node-ip-address") == "10.0.0.8"
    assert _value(argv, "--dashboard-agent-listen-port") == "52365"
    assert "--head" not in argv
    stack = json.loads(texts_of(render_member(plan))["stack.json"])
    assert (stack["joins"], stack["models"]) == ("10.0.0.1:6379", [])


def test_a_box_that_joins_gives_the_gpus_that_it_may_and_drains_as_it_was_told() -> None:
    plan = member_plan(on_ray(model="", gpus=("2", "0"), drain_timeout=40.0), HEAD, ray_inventory())
    assert (plan.workers[0].gpus, head_of(plan).gpus) == (("2", "0"), 2)
    assert plan.workers[0].env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "40"
    cores = machine(cores=(0, 1))
    on_cpu = member_plan(on_ray(model="", device="cpu"), HEAD, ray_inventory(machine=cores))
    assert (on_cpu.workers[0].gpus, head_of(on_cpu).cpus) == ((), 2)


@pytest.mark.parametrize("depth", [1, 5, 12, 20])
def test_every_socket_of_ray_fits_into_a_socket_address_however_deep_the_stack_lies(depth: int) -> None:
    """107 bytes (unix(7))."""
    plan = plan_for(on_ray(out=Path("/srv" + "/deep1" * depth)), ray_inventory())
    longest = "session_2026-11-27_18-33-14_904901_4194304/sockets/plasma_store"
    assert len(str(head_of(plan).temp / longest)) <= 107
    other = replace(Layout.at(Path("/srv/other")), out=Path("/srv" + "/deep1" * depth + "/other"))
    assert other.ray_temp != head_of(plan).temp
