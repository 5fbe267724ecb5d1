"""A plan becomes files that supervisord and gunicorn read back as they were meant."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from tests.unit.boxes import inventory, options, plan_for
from vllm_stack.errors import OutputError
from vllm_stack.files import File
from vllm_stack.gpus.box import GpuBox
from vllm_stack.model.find import Model
from vllm_stack.planning.plan import Plan
from vllm_stack.render import render


def files_of(plan: Plan) -> dict[str, File]:
    return {file.path.name: file for file in render(plan)}


def parse_supervisord_conf(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerOptions:
    """Read the file with supervisord's own parser."""
    path = tmp_path / "supervisord.conf"
    path.write_text(text, "utf-8")
    monkeypatch.setattr(sys, "argv", ["supervisord", "-c", str(path)])
    parsed = ServerOptions()
    parsed.realize(["-c", str(path)])
    return parsed


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    layout = tmp_path / "out"
    (layout / "logs").mkdir(parents=True)
    (layout / "run").mkdir()
    return plan_for(options(out=layout, tensor_parallel_size=2), inventory())


def test_the_same_plan_gives_the_same_bytes(plan: Plan) -> None:
    assert render(plan) == render(plan)


def test_all_files_are_for_the_owner_alone(plan: Plan) -> None:
    assert all(file.mode == 0o600 for file in render(plan))


def test_supervisord_reads_back_one_program_per_worker_pinned_to_its_gpus(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = parse_supervisord_conf(files_of(plan)["supervisord.conf"].text, tmp_path, monkeypatch)
    groups = {group.name: group for group in parsed.process_group_configs}
    assert set(groups) == {"workers", "proxy"}
    workers = groups["workers"].process_configs
    assert [(w.name, w.environment["CUDA_VISIBLE_DEVICES"]) for w in workers] == [
        ("worker-0", "0,1"),
        ("worker-1", "2,3"),
    ]
    assert all(w.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" for w in workers)


def test_supervisord_keeps_trying_stops_the_proxy_first_and_signals_the_wrapper_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = parse_supervisord_conf(files_of(plan)["supervisord.conf"].text, tmp_path, monkeypatch)
    groups = {group.name: group for group in parsed.process_group_configs}
    assert groups["proxy"].priority > groups["workers"].priority
    for worker in groups["workers"].process_configs:
        assert worker.startsecs == 30
        assert worker.startretries >= 1_000_000
        assert (worker.stopasgroup, worker.killasgroup) == (False, True)
        assert worker.stopwaitsecs > plan.timings.stop_grace
        assert worker.redirect_stderr


def test_a_box_without_gpus_hides_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("logs", "run"):
        (tmp_path / "out" / name).mkdir(parents=True)
    plan = plan_for(options(out=tmp_path / "out", device="cpu"), inventory(gpus=GpuBox(())))
    parsed = parse_supervisord_conf(files_of(plan)["supervisord.conf"].text, tmp_path, monkeypatch)
    for group in parsed.process_group_configs:
        for program in group.process_configs:
            assert program.environment.get("CUDA_VISIBLE_DEVICES", "") == ""


def test_gunicorn_reads_back_the_doors_and_our_worker_class(plan: Plan) -> None:
    module = ast.parse(files_of(plan)["gunicorn.conf.py"].text)
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert values["bind"] == ["127.0.0.1:8000", "127.0.0.1:9000"]
    assert values["worker_class"] == "vllm_stack.proxy.gunicorn_worker.ProxyWorker"
    assert values["http_parser"] == "python"
    assert values["control_socket_disable"] is True
    assert values["graceful_timeout"] == 15


def test_an_ipv6_door_is_written_with_brackets(tmp_path: Path) -> None:
    plan = plan_for(options(out=tmp_path, host="::1"), inventory())
    assert '"[::1]:8000"' in files_of(plan)["gunicorn.conf.py"].text


# Whatever a user can put into an argument that the kernel takes: no NUL, and no lone surrogate.
ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


@given(words=st.lists(ARGUMENT, max_size=4), model=ARGUMENT)
def test_no_text_of_the_users_reaches_supervisords_configuration(words: list[str], model: str) -> None:
    """A newline there would begin a program section of the attacker's choice."""
    values = tuple(f"x{word}" for word in words)  # not options of ours
    clean = plan_for(options(), inventory())
    plan = plan_for(options(vllm_args=values), inventory(model=Model(model, "directory")))
    rendered = files_of(plan)

    def without_fingerprints(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("environment=")]

    assert without_fingerprints(rendered["supervisord.conf"].text) == without_fingerprints(
        files_of(clean)["supervisord.conf"].text
    )
    assert rendered["gunicorn.conf.py"] == files_of(clean)["gunicorn.conf.py"]
    argv = json.loads(rendered["worker-0.json"].text)["argv"]
    assert argv[2] == model
    assert tuple(argv[len(argv) - len(values) :]) == values


def test_no_secret_is_rendered(tmp_path: Path) -> None:
    plan = plan_for(options(out=tmp_path, api_keys=("sk-very-secret",)), inventory())
    assert not any("sk-very-secret" in file.text for file in render(plan))


def test_changed_options_have_another_fingerprint_and_only_for_those_they_concern(tmp_path: Path) -> None:
    def fingerprints(**changes: Any) -> list[str]:
        text = files_of(plan_for(options(out=tmp_path, **changes), inventory()))["supervisord.conf"].text
        return [line.rpartition("=")[2] for line in text.splitlines() if line.startswith("environment=")]

    before, after = fingerprints(), fingerprints(policy="random")
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    assert fingerprints() == before


def test_an_interpreter_supervisord_would_misread_is_refused() -> None:
    plan = plan_for(options(), inventory(python=Path("/opt/my env/bin/python")))
    with pytest.raises(OutputError, match="my env"):
        render(plan)


@pytest.mark.parametrize("depth", [1, 20])
def test_the_control_socket_fits_into_a_socket_address(depth: int) -> None:
    plan = plan_for(options(out=Path("/srv" + "/deep1" * depth)), inventory())
    assert len(str(plan.layout.socket)) + len(".4194304") <= 107
