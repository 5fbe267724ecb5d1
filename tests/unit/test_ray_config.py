"""What Ray Serve is told of a stack: a value in Ray's words, in which every option has its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boxes import options, plan_for, ray_inventory
from vllm_stack.options import Policy
from vllm_stack.ray.serve_config import ROUTERS, Served, Serving, serve_config
from vllm_stack.render import render

POLICIES: tuple[Policy, ...] = ("prefix", "session", "least-loaded", "round-robin", "random")
SECRET = "sk-a-secret-that-stands-nowhere"


def served(**changes: Any) -> Served:
    facts: dict[str, Any] = {
        "model": "some/model",
        "names": ("some/model",),
        "workers": 2,
        "most_workers": 0,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "bundle": {"GPU": 1},
        "engine": {},
    }
    return Served(**{**facts, **changes})


def serving(**changes: Any) -> Serving:
    facts: dict[str, Any] = {"port": 5001, "keep_alive": 75, "drain_timeout": 15.0, "policy": "prefix"}
    return Serving(**{**facts, "max_inflight": None, "side": "/opt/side", **changes})


def llm_config(one: Served, given: Serving | None = None) -> Any:
    """Give what is said of one model."""
    (only,) = serve_config([one], given or serving())["applications"][0]["args"]["llm_configs"]
    return only


def deployment(one: Served, given: Serving | None = None) -> Any:
    return llm_config(one, given)["deployment_config"]


def test_the_workers_are_replicas_and_their_bounds_those_of_the_autoscaler() -> None:
    fixed = deployment(served(workers=3))
    assert fixed["num_replicas"] == 3
    assert "autoscaling_config" not in fixed
    bounded = deployment(served(workers=1, most_workers=4))
    assert "num_replicas" not in bounded
    assert bounded["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 64,
    }


def test_a_limit_of_requests_is_that_of_a_replica_and_what_more_replicas_go_by() -> None:
    limited = deployment(served(most_workers=4), serving(max_inflight=16))
    assert limited["max_ongoing_requests"] == 16
    assert limited["autoscaling_config"]["target_ongoing_requests"] == 16
    assert "max_ongoing_requests" not in deployment(served())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("workers", "most_workers", "several"), [(1, 0, False), (2, 0, True), (1, 2, True)])
def test_a_policy_has_its_router_where_there_is_something_to_choose_from(
    policy: Policy, workers: int, most_workers: int, several: bool
) -> None:
    found = deployment(served(workers=workers, most_workers=most_workers), serving(policy=policy))
    router = found.get("request_router_config", {}).get("request_router_class")
    assert router == (ROUTERS.get(policy) if several else None)


def test_sessions_and_turns_have_routers_and_the_other_policies_have_none() -> None:
    assert {policy for policy in POLICIES if policy in ROUTERS} == {"session", "round-robin"}
    assert ROUTERS["session"].endswith(":ConsistentHashRouter")
    assert ROUTERS["round-robin"].endswith(":RoundRobinRouter")


@pytest.mark.parametrize(("stages", "strategy"), [(1, "STRICT_PACK"), (2, "PACK")])
def test_gpus_of_a_stage_stay_on_one_box_and_only_stages_may_be_apart(stages: int, strategy: str) -> None:
    found = llm_config(served(tensor_parallel_size=4, pipeline_parallel_size=stages))
    assert found["placement_group_config"] == {"bundle_per_worker": {"GPU": 1}, "strategy": strategy}
    sizes = {"tensor_parallel_size": 4, "pipeline_parallel_size": stages}
    assert found["engine_kwargs"] == sizes


def test_a_replica_on_a_cpu_takes_no_core_beside_those_of_its_bundle() -> None:
    on_cpu = llm_config(served(bundle={"CPU": 1}, env={"OMP": "nobind"}))
    assert on_cpu["placement_group_config"]["bundle_per_worker"] == {"CPU": 1}
    assert on_cpu["deployment_config"]["ray_actor_options"] == {"num_cpus": 0}
    assert on_cpu["runtime_env"] == {"env_vars": {"OMP": "nobind"}}
    on_gpus = llm_config(served())
    assert "ray_actor_options" not in on_gpus["deployment_config"]
    assert "runtime_env" not in on_gpus


def test_arguments_of_the_engine_are_passed_on_as_they_are() -> None:
    given = {"max_model_len": 8192, "limit_mm_per_prompt": {"image": 2}, "enforce_eager": True}
    found = llm_config(served(engine=given))["engine_kwargs"]
    assert {name: found[name] for name in given} == given


def test_a_drain_is_as_long_as_was_asked_and_tokens_are_not_gathered() -> None:
    assert deployment(served(), serving(drain_timeout=40.0))["graceful_shutdown_timeout_s"] == 40.0
    assert llm_config(served())["experimental_configs"] == {"stream_batching_interval_ms": 0}


def test_the_first_name_is_the_models_and_the_others_are_aliases_of_it() -> None:
    config = serve_config(
        [served(names=("a", "b", "c")), served(model="other/model", names=("other",))], serving()
    )
    args = config["applications"][0]["args"]
    assert [one["model_loading_config"] for one in args["llm_configs"]] == [
        {"model_id": "a", "model_source": "some/model"},
        {"model_id": "other", "model_source": "other/model"},
    ]
    assert args["ingress_cls_config"]["ingress_extra_kwargs"] == {"aliases": {"b": "a", "c": "a"}}


def test_http_is_on_loopback_of_the_head_alone_and_so_are_ingress_and_health() -> None:
    config = serve_config([served()], serving(port=7001))
    assert config["proxy_location"] == "HeadOnly"
    assert config["http_options"] == {"host": "127.0.0.1", "port": 7001, "keep_alive_timeout_s": 75}
    models, health = config["applications"]
    assert (models["route_prefix"], health["route_prefix"]) == ("/", "/health")
    ingress, judge = models["args"]["ingress_deployment_config"], health["deployments"][0]
    for one in (ingress, judge):
        assert one["num_replicas"] == 1
        assert one["ray_actor_options"]["resources"] == {"node:__internal_head__": 0.001}
        assert one["ray_actor_options"]["num_cpus"] == 0
    assert {one["runtime_env"]["env_vars"]["PYTHONPATH"] for one in (models, health)} == {"/opt/side"}
    assert health["args"] == {"application": models["name"]}


def test_no_key_of_a_client_is_in_what_ray_is_told() -> None:
    files = render(plan_for(options(target="ray", api_keys=(SECRET,)), ray_inventory()))
    texts = {file.path.name: file.text for file in files}
    assert "llm_configs" in texts["serve.yaml"]
    assert not [name for name, text in texts.items() if SECRET in text]


MODELS = st.builds(
    served,
    model=st.text(min_size=1),
    names=st.lists(st.text(min_size=1), min_size=1, max_size=3, unique=True).map(tuple),
    workers=st.integers(1, 9),
    most_workers=st.just(0) | st.integers(10, 20),
    tensor_parallel_size=st.integers(1, 16),
    pipeline_parallel_size=st.integers(1, 4),
    bundle=st.sampled_from([{"GPU": 1}, {"CPU": 1}]),
    engine=st.dictionaries(
        st.text(min_size=1).filter(lambda name: "parallel_size" not in name),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()),
    ),
)


@given(st.lists(MODELS, min_size=1, max_size=3), st.sampled_from(POLICIES), st.none() | st.integers(1, 99))
def test_whatever_the_models_each_is_told_once_and_the_value_goes_through_json(
    models: list[Served], policy: Policy, limit: int | None
) -> None:
    config = serve_config(models, serving(policy=policy, max_inflight=limit))
    assert json.loads(json.dumps(config)) == config
    told = config["applications"][0]["args"]["llm_configs"]
    assert len(told) == len(models)
    for one, said in zip(models, told, strict=True):
        assert said["model_loading_config"] == {"model_id": one.names[0], "model_source": one.model}
        assert said["engine_kwargs"].items() >= one.engine.items()
        of_replicas = said["deployment_config"]
        assert ("num_replicas" in of_replicas) != ("autoscaling_config" in of_replicas)
        assert of_replicas.get("max_ongoing_requests") == limit
        if "request_router_config" in of_replicas:
            assert one.several
