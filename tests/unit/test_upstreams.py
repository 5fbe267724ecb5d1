"""`--upstream` and the file of keys: what is understood, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.boxes import inventory, options, plan_for
from vllm_stack.address import TcpAddress
from vllm_stack.errors import UsageError, VllmCommandError
from vllm_stack.gpus.box import GpuBox
from vllm_stack.render import render
from vllm_stack.upstreams import parse_upstream, parse_upstreams, read_upstream_keys

GPU2 = TcpAddress("gpu2", 8000)
GPU3 = TcpAddress("gpu3", 8000)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://gpu2:8000", GPU2),
        ("http://GPU2:8000/", GPU2),
        ("http://10.0.0.7:8000", TcpAddress("10.0.0.7", 8000)),
        ("http://[::1]:8000", TcpAddress("::1", 8000)),
        ("http://[fe80::1%eth0]:8000", TcpAddress("fe80::1%eth0", 8000)),
        ("http://gpu-2.rack_1.example.", TcpAddress("gpu-2.rack_1.example.", 80)),
    ],
)
def test_a_url_gives_host_and_port(url: str, address: TcpAddress) -> None:
    assert parse_upstream(url) == address


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("https://gpu2:8443", ("https://gpu2:8443", "plain http", "ssh -N -L")),
        ("http://gpu2:8000/v1", ("/v1", "http://gpu2:8000")),
        ("http://gpu2:8000?x=1", ("x=1",)),
        ("http://gpu2:8000?", ("8000?",)),
        ("http://gpu2:8000/#", ("/#",)),
        ("gpu2:8000", ("gpu2:8000", "http://host:port")),
        ("gpu2", ("gpu2", "http://host:port")),
        ("", ("''",)),
        ("http://", ("http://host:port",)),
        ("http://:8000", ("http://:8000",)),
        ("http://gpu2:", ("gpu2:",)),
        ("http://gpu2:0", ("gpu2:0",)),
        ("http://gpu2:70000", ("70000",)),
        ("http://gpu2:x", ("gpu2:x",)),
        ("http://[::1:8000", ("[::1:8000",)),
        ("http://[gpu2]:8000", ("[gpu2]",)),
        ("http://10.0.0:8000", ("10.0.0:8000",)),
        ("http://10.0.0.300:8000", ("10.0.0.300",)),
        ("http://gpu 2:8000", ("gpu 2",)),
        ("http://gpu\t2:8000", ("gpu\\t2",)),
        ("http://gpu2\r\nx:8000", ("\\r\\n",)),
        ("http://gpü:8000", ("gpü",)),
        ("http://-gpu:8000", ("-gpu",)),
        ("http://a..b:8000", ("a..b",)),
        (f"http://{'a' * 64}:8000", ("a" * 64,)),
        ("unix:/run/x.sock", ("unix:/run/x.sock",)),
    ],
)
def test_what_is_no_plain_http_server_is_refused_by_its_value(url: str, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_upstream(url)
    assert all(name in str(caught.value) for name in names), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_refused_without_being_shown() -> None:
    with pytest.raises(UsageError, match="--upstream-key-file") as caught:
        parse_upstream("http://me:hunter2@gpu2:8000")
    assert "hunter2" not in str(caught.value)


def test_the_same_server_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_upstreams(["http://gpu2:8000", "http://GPU2:8000/"])


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "upstream-keys"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("sk-all\n", {GPU2: "sk-all", GPU3: "sk-all"}),
        ("# of gpu2\nhttp://gpu2:8000  sk-2\n", {GPU2: "sk-2"}),
        ("sk-all\nhttp://gpu2:8000 sk-2\n", {GPU2: "sk-2", GPU3: "sk-all"}),
    ],
)
def test_a_key_is_for_all_upstreams_or_for_the_one_it_stands_beside(
    tmp_path: Path, text: str, keys: dict[TcpAddress, str]
) -> None:
    assert read_upstream_keys(key_file(tmp_path, text), (GPU2, GPU3)) == keys


@pytest.mark.parametrize(
    ("text", "mode", "names"),
    [
        ("sk-secret", 0o644, ("chmod 600",)),
        ("", 0o600, ("holds no key",)),
        ("sk-secret\nsk-secret2", 0o600, ("two keys", "all upstreams")),
        ("http://gpu2:8000 sk-secret\nhttp://GPU2:8000 sk-secret2", 0o600, ("two keys", "gpu2")),
        ("http://gpu9:8000 sk-secret", 0o600, ("gpu9", "no --upstream")),
        ("https://gpu2:8000 sk-secret", 0o600, ("https://gpu2",)),
        ("sk-sëcret", 0o600, ("printable ASCII",)),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant_is_refused_and_no_key_is_shown(
    tmp_path: Path, text: str, mode: int, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        read_upstream_keys(key_file(tmp_path, text, mode), (GPU2, GPU3))
    assert all(name in str(caught.value) for name in ("--upstream-key-file", *names)), str(caught.value)
    assert "secret" not in str(caught.value)
    assert "sëcret" not in str(caught.value)


def test_a_connection_is_kept_for_less_than_a_server_of_the_usual_kind_keeps_it() -> None:
    """uvicorn's 5 s, which is vLLM's default too: it must be us who hang up first."""
    plan = plan_for(options(upstreams=(GPU2,)), inventory())
    assert plan.timings.upstream_idle < 5


def test_a_stack_that_would_send_to_itself_is_refused() -> None:
    for address in (TcpAddress("127.0.0.1", 8000), TcpAddress("localhost", 9000), TcpAddress("::1", 5001)):
        with pytest.raises(UsageError, match="this stack itself"):
            plan_for(options(upstreams=(address,)), inventory())
    assert plan_for(options(upstreams=(TcpAddress("127.0.0.1", 8100),)), inventory())


def test_plain_http_beyond_this_machine_is_said_aloud() -> None:
    notes = plan_for(options(upstreams=(GPU2, TcpAddress("127.0.0.1", 8100))), inventory()).notes
    (note,) = (note for note in notes if "plain HTTP" in note)
    assert "http://gpu2:8000" in note
    assert "8100" not in note


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_pure_balancer_needs_neither_gpus_nor_vllm(tmp_path: Path, device: str) -> None:
    box = inventory(gpus=GpuBox((), "no driver"), vllm=VllmCommandError("none"))
    plan = plan_for(options(workers=0, device=device, upstreams=(GPU2,), out=tmp_path), box)
    files = {file.path.name: file.text for file in render(plan)}
    monitoring = {"prometheus.yml", "alerts.yml", "grafana.json"}
    assert set(files) == {"supervisord.conf", "gunicorn.conf.py", "proxy.json", "stack.json", *monitoring}
    assert "[group:workers]" not in files["supervisord.conf"]
    assert "[program:proxy]" in files["supervisord.conf"]
    assert json.loads(files["proxy.json"])["upstreams"] == [{"name": "upstream-0", "address": "gpu2:8000"}]
    assert not any("version" in note for note in plan.notes)


def test_nobody_to_send_to_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--workers 0 .*--upstream"):
        plan_for(options(workers=0), inventory())
