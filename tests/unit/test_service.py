"""The systemd unit: systemd takes it, it says whose the stack is, and nobody reads a secret in it."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ports import free_ports
from tests.unit.boxes import amd_box, inventory, options, plan_for
from vllm_stack import cli
from vllm_stack.errors import OutputError
from vllm_stack.gpus.box import GpuBox
from vllm_stack.planning.plan import Plan
from vllm_stack.render import render
from vllm_stack.service import Service, assignment, divide, read_service

ODD = "C:\\bin:/a b/%h:\"q\":$HOME:'s';#x"
SERVICE = Service("alice", "staff", {"PATH": "/usr/bin", "HF_HOME": ODD})


def planned(out: Path = Path("/srv/stack"), gpus: GpuBox | None = None, **changes: Any) -> Plan:
    facts = {"gpus": gpus} if gpus else {}
    return plan_for(
        options(out=out, systemd=True, **changes),
        inventory(service=SERVICE, python=Path(sys.executable), **facts),
    )


def unit_of(plan: Plan) -> str:
    return next(file.text for file in render(plan) if file.path == plan.layout.unit)


def settings_of(plan: Plan) -> dict[str, list[str]]:
    """Give the settings as they stand, by their names."""
    found = defaultdict(list)
    for line in unit_of(plan).splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def complaints(path: Path) -> str:
    """Give what systemd has to say of a unit; its exit code is 0 whatever that is."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze reads the unit: apt-get install systemd (it need not run)"
    argv = [program, "verify", "--man=no", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if path.name in line)


# --- what is rendered


@pytest.mark.parametrize("depth", [1, 20])
@pytest.mark.parametrize("device", ["cpu", "cuda", "rocm"])
def test_systemd_understands_every_line(tmp_path: Path, device: str, depth: int) -> None:
    out = tmp_path.joinpath(*["deep1"] * depth)
    plan = planned(out, amd_box(4) if device == "rocm" else None, device="cpu" if device == "cpu" else "auto")
    assert plan.device == device
    unit = tmp_path / "vllm-stack.service"
    unit.write_text(unit_of(plan), "utf-8")
    assert complaints(unit) == ""


def test_systemd_would_say_what_it_does_not_understand(tmp_path: Path) -> None:
    """Or the test above would tell nothing."""
    unit = tmp_path / "vllm-stack.service"
    unit.write_text(unit_of(planned(tmp_path)).replace("KillMode=mixed", "KillMode=often"), "utf-8")
    assert "often" in complaints(unit)


def test_it_runs_supervisord_as_who_rendered_and_is_patient_with_its_stop() -> None:
    plan = planned(drain_timeout=100.0)
    settings = settings_of(plan)
    assert (settings["User"], settings["Group"]) == (["alice"], ["staff"])
    (command,) = settings["ExecStart"]
    assert command.split() == [
        *f"{sys.executable} -P -m supervisor.supervisord -c".split(),
        command.split()[-1],
    ]
    assert command.endswith("/srv/stack/supervisord.conf")
    (patience,) = settings["TimeoutStopSec"]
    assert int(patience) > plan.timings.proxy_stop_wait + plan.timings.worker_stop_wait > 200


def test_a_path_too_long_for_sockets_has_their_directory_made_again_after_a_boot() -> None:
    plan = planned(Path("/srv" + "/deep1" * 20), device="cpu")
    (command,) = settings_of(plan)["ExecStartPre"]
    assert command.split() == [
        "/usr/bin/install",
        "-d",
        *["-m", "0700", "-o", "alice"],
        str(plan.layout.socket.parent),
    ]
    assert "ExecStartPre" not in settings_of(planned(device="cpu"))


def test_without_the_option_there_is_no_unit() -> None:
    plan = plan_for(options(), inventory())
    assert plan.layout.unit not in [file.path for file in render(plan)]


def test_the_unit_may_be_read_by_all_and_says_no_key() -> None:
    plan = planned(api_keys=("sk-very-secret",))
    (file,) = [file for file in render(plan) if file.path == plan.layout.unit]
    assert file.mode == 0o644
    assert "secret" not in file.text.replace(str(plan.layout.environment), "").replace("No secret", "")


def test_render_says_how_to_install_it_and_takes_it_away_when_it_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_deeply_secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"num_attention_heads": 9}))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    ports = zip(("--port", "--admin-port", "--base-port"), map(str, free_ports(3)), strict=True)
    words = [
        "render",
        "model",
        "--device",
        "cpu",
        "--vllm-command",
        str(vllm),
        *(w for two in ports for w in two),
    ]
    assert cli.run([*words, "--systemd"]) == 0
    said = capsys.readouterr().out
    unit = tmp_path / "out" / "vllm-stack.service"
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    assert "cp out/vllm-stack.service /etc/systemd/system/" in said
    assert "systemctl enable --now vllm-stack.service" in said
    assert re.search(rf"does not set .*\bHF_TOKEN\b.* {tmp_path}/out/secrets/environment", said)
    assert "deeply" not in said + unit.read_text()
    assert cli.run(words) == 0
    assert not unit.exists()
    assert "systemctl" not in capsys.readouterr().out


# --- what it takes along


def test_what_the_shell_had_is_taken_along_and_what_may_be_secret_is_named() -> None:
    environ = {
        "PATH": "/usr/bin",
        "HF_HOME": "/data/hf",
        "https_proxy": "http://proxy:3128",
        "HTTP_PROXY": "http://me:word@proxy:3128",
        "HF_TOKEN": "hf_x",
        "VLLM_API_KEY": "k",
        "NCCL_DEBUG": "INFO",
        "EDITOR": "vi",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "VLLM_STACK_PORT": "8080",
    }
    taken, missed = divide(environ, ())
    assert taken == {"PATH": "/usr/bin", "HF_HOME": "/data/hf", "https_proxy": "http://proxy:3128"}
    assert missed == ("HF_TOKEN", "HTTP_PROXY", "NCCL_DEBUG", "VLLM_API_KEY")


def test_what_is_written_down_for_the_unit_is_neither_missed_nor_said_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HF_HOME"):
        monkeypatch.setenv(name, "x")
    written = tmp_path / "environment"
    assert {"HF_TOKEN"} <= {*read_service(written).missed}
    assert "HF_HOME" in read_service(written).environment
    written.write_text("# mine\nHF_TOKEN=y\nHF_HOME = /data\n")
    service = read_service(written)
    assert "HF_TOKEN" not in service.missed
    assert "HF_HOME" not in {*service.missed, *service.environment}


@pytest.mark.parametrize(
    ("name", "said"),
    [("alice", "alice"), ("DOMAIN\\alice", "1234"), ("a%h", "1234"), ("-x", "1234"), (None, "1234")],
)
def test_an_account_that_systemd_may_misread_is_told_by_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, said: str
) -> None:
    class Account:
        pw_name = gr_name = name

    def look_up(number: int) -> Account:
        if name is None:
            raise KeyError(number)
        return Account()

    monkeypatch.setattr("os.geteuid", lambda: 1234)
    monkeypatch.setattr("os.getegid", lambda: 1234)
    monkeypatch.setattr("pwd.getpwuid", look_up)
    monkeypatch.setattr("grp.getgrgid", look_up)
    service = read_service(tmp_path / "none")
    assert (service.user, service.group) == (said, said)


@given(value=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_a_variable_is_one_line_that_says_the_same_or_is_refused(value: str) -> None:
    """As systemd.syntax(7) reads it: C escapes within quotes, and then specifiers."""
    if not value.isprintable():
        with pytest.raises(OutputError, match="HF_HOME"):
            assignment("HF_HOME", value)
        return
    line = assignment("HF_HOME", value)
    assert len(line.splitlines()) == 1
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', line)
    assert quoted
    unescaped = re.sub(r"\\(.)", r"\1", quoted[1])
    assert "%" not in unescaped.replace("%%", "")
    assert unescaped.replace("%%", "%") == f"HF_HOME={value}"


@pytest.mark.parametrize(
    "value", ["http://me:word@proxy:3128", "me:word@proxy:3128", "http://me:wo/rd@proxy:3128", "me@proxy"]
)
def test_a_password_is_not_taken_along_however_the_url_is_written(value: str) -> None:
    assert divide({"https_proxy": value, "PATH": "/opt/tool@2//x@y/bin"}, ()) == (
        {"PATH": "/opt/tool@2//x@y/bin"},
        ("https_proxy",),
    )
