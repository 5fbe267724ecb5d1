"""`vllm-stack haproxy`: what is written for the doors of several boxes, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vllm_stack.cli import run
from vllm_stack.options import Options

DOORS = ("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::3]:8000")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["haproxy", *words]) == 0
    return capsys.readouterr().out


def servers(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("server ")]


def test_the_first_door_gets_everything_and_the_others_stand_by(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *DOORS)
    assert servers(text) == [
        "server door-1 10.0.0.1:8000 check",
        "server door-2 10.0.0.2:8000 check backup",
        "server door-3 [fd00::3]:8000 check backup",
    ]
    assert "balance" not in text
    assert "bind *:8080\n" in text


def test_all_doors_share_what_comes_with_balance(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *DOORS, "--balance", "--bind", "10.0.0.9:80")
    assert [line.endswith(" check") for line in servers(text)] == [True, True, True]
    assert "balance leastconn" in text
    assert "bind 10.0.0.9:80\n" in text


def test_a_silent_worker_is_waited_for_longer_than_a_door_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *DOORS)
    waits = re.findall(r"timeout (?:client|server) (\d+)s", text)
    assert len(waits) == 2
    door = Options(model="m")
    assert all(int(wait) > door.queue_timeout + door.response_timeout for wait in waits)


def test_a_request_is_tried_for_longer_than_it_takes_to_find_a_door_dead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(capsys, *DOORS)
    inter, fall = (int(number) for number in re.findall(r"inter (\d+)s fall (\d+)", text)[0])
    (tries_again,) = re.findall(r"^    retries (\d+)$", text, re.M)
    # haproxy waits a second before it tries the same server again; until this one is dead it is the only one.
    assert int(tries_again) > inter * fall


def test_a_certificate_is_named_with_its_whole_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pem = tmp_path / "door.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    assert f"bind *:443 ssl crt {pem} alpn http/1.1\n" in printed(
        capsys, *DOORS, "--bind", "*:443", "--tls-cert", str(pem)
    )


def test_the_file_is_its_owners(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    assert f"haproxy -c -f {path}" in printed(capsys, *DOORS, "--output", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert servers(path.read_text())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["http://10.0.0.1:8000"], ["1 doors", "2 to 16"]),
        (["http://10.0.0.1:8000", "http://10.0.0.1:8000"], ["10.0.0.1:8000", "twice"]),
        (["http://10.0.0.1:8000", "https://10.0.0.2"], ["https://10.0.0.2", "ssh -N -L"]),
        (["http://10.0.0.1:8000", "box2"], ["'box2'", "http://host:port"]),
        ([*DOORS, "--bind", "8080"], ["'8080'", "ADDRESS:PORT"]),
        ([*DOORS, "--bind", "*:70000"], ["'*:70000'", "1 to 65535"]),
        ([*DOORS, "--bind", "*:0"], ["'*:0'", "1 to 65535"]),
        ([*DOORS, "--bind", "*:80\nbind *:81"], ["--bind"]),
        ([*DOORS, "--tls-cert", "/nowhere.pem"], ["/nowhere.pem", "cannot be read"]),
        ([*DOORS, "--tls-cert", "/etc/hostname"], ["/etc/hostname", "certificate"]),
        ([*DOORS, "--tls-cert", "/dev/zero"], ["/dev/zero", "cannot be read"]),
        ([f"http://10.0.0.{number}:8000" for number in range(1, 18)], ["17 doors"]),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(
    words: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["haproxy", *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for name in names:
        assert name in told


@pytest.mark.timeout(10)
def test_a_certificate_that_is_a_fifo_is_refused_and_not_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert run(["haproxy", *DOORS, "--tls-cert", str(tmp_path / "fifo")]) == 2
    assert f"{tmp_path / 'fifo'} cannot be read" in capsys.readouterr().err
