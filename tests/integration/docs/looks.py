"""What a page says that will come, looked at once its command has run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from stat import S_IMODE

from tests.integration.conftest import CHAT, ask, chat

from .pages import blocks
from .world import World

# What was printed -> AssertionError if it is not what the page says.
Look = Callable[[World, str], None]


def says(*patterns: str) -> Look:
    """Make the look for some text."""

    def look(world: World, shown: str) -> None:
        for pattern in patterns:
            assert re.search(pattern, shown, re.MULTILINE), f"nothing like {pattern!r} is shown"

    return look


def everything_runs(world: World, shown: str) -> None:
    """supervisord calls a worker STARTING until it has run for as long as a restart is delayed."""
    states = dict(line.split()[:2] for line in shown.splitlines())
    assert states.keys() == {"proxy", "workers:worker-0", "workers:worker-1"}
    assert set(states.values()) <= {"RUNNING", "STARTING"}


def nobody_serves(world: World, shown: str) -> None:
    assert "No process of the stack is left." in shown
    try:
        ask(world.ports.door)
    except ConnectionRefusedError:
        return
    raise AssertionError("somebody serves at the door")


def the_status_is_json(world: World, shown: str) -> None:
    told = json.loads(shown)
    assert (told["exit_code"], told["summary"]) == (0, "Both workers are ready.")


def the_model_is_listed(world: World, shown: str) -> None:
    assert [model["id"] for model in json.loads(shown)["data"]] == ["Qwen/Qwen3-8B"]


def the_model_is_here(world: World, shown: str) -> None:
    snapshots = world.home / ".cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots"
    (snapshot,) = snapshots.iterdir()
    assert (snapshot / "model.safetensors").is_file()


def only_the_owner_reads(file: str) -> Look:
    def look(world: World, shown: str) -> None:
        path = world.home / file
        assert S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip()

    return look


def there_is(file: str, beginning: bytes = b"") -> Look:
    """Make the look for a file that the command has made; it is gone afterwards, for the next one."""

    def look(world: World, shown: str) -> None:
        path = world.home / file
        assert path.stat().st_size > 100
        assert path.read_bytes().startswith(beginning)
        path.unlink()

    return look


def lines_are_json(world: World, shown: str) -> None:
    assert shown
    assert all({"time", "program", "text"} <= json.loads(line).keys() for line in shown.splitlines())


def only_two_are_heard(world: World, shown: str) -> None:
    assert {line.split()[0] for line in shown.splitlines()} == {"worker-0", "proxy"}


def of_both_workers(part: str, value: str) -> Look:
    """Make the look for what both servers were started with: `part` of what the fake tells of itself."""

    def look(world: World, shown: str) -> None:
        for port in (world.ports.base, world.ports.base + 1):
            told = json.loads(ask(port, path="/fake/state")[1])[part]
            assert value in json.dumps(told), told

    return look


def worker_1_is(state: str) -> Look:
    def look(world: World, shown: str) -> None:
        workers = json.loads(ask(world.ports.admin, path="/workers")[1])["workers"]
        told = {worker["name"]: worker["state"] for worker in workers}
        assert told == {"worker-0": "ready", "worker-1": state}

    return look


def the_balancer_balances(world: World, shown: str) -> None:
    assert ask(world.ports.door, "POST", CHAT, chat())[0] == 200


def a_key_is_printed_alone(world: World, shown: str) -> None:
    """Whoever has it gets in, and so does who has one of before (`--grace`); nobody else."""
    (key,) = shown.splitlines()
    assert key not in world.keys
    world.keys.append(key)
    assert [status_with(world, key) for key in world.keys] == [200] * len(world.keys)
    assert status_with(world, "another") == 401


def no_key_is_shown(world: World, shown: str) -> None:
    assert "alice" in shown
    assert not any(key in shown for key in world.keys)


def no_key_is_good(world: World, shown: str) -> None:
    assert [status_with(world, key) for key in world.keys] == [401] * len(world.keys)


def status_with(world: World, key: str) -> int:
    return ask(world.ports.door, path="/v1/models", headers={"authorization": f"Bearer {key}"})[0]


def the_page_shows_it(page: str) -> Look:
    """Make the look for what the page shows below the command: every line of that, whatever the spaces.

    What this machine is warned of (a small /dev/shm, say) is not the page's.
    """

    def look(world: World, shown: str) -> None:
        (block,) = (block for block in blocks(page) if block.lines[0].startswith("$ "))
        shown = re.sub(r", \d+ warnings?", "", shown)
        found = [line.replace(str(world.home), "").split() for line in shown.splitlines()]
        for line in block.lines[1:]:
            assert line == "..." or line.split() in found, f"{page} shows what is not shown: {line}"

    return look


_ALL_READY = says("^Both workers are ready\\.$")
_RENDERABLE = says(": render would write the stack\\.$")
_REPORT = says("^clients +way +requests", "^ +64 +proxy", "^ +direct", "^What the proxy adds")
_COLLECTED = says("[0-9]+ tests collected")

# By what the tables call a command, in front of it a page where it says more there than elsewhere.
LOOKS: dict[str, Look] = {
    "README.md (python)": says("^Qwen/Qwen3-8B$"),
    "supervisorctl -c out/supervisord.conf status": everything_runs,
    "make up MODEL=Qwen/Qwen3-8B WORKERS=2 DETACH=1": says("^Ready after .*: worker-0, worker-1$"),
    "make status": _ALL_READY,
    "make down": nobody_serves,
    "vllm-stack down": nobody_serves,
    "vllm-stack up --detach": says("^Ready after .*: worker-0, worker-1$"),
    "vllm-stack status": _ALL_READY,
    "vllm-stack status --json": the_status_is_json,
    'curl -s http://127.0.0.1:8000/v1/models -H "Authorization: Bearer $(cat keys.txt)"': the_model_is_listed,
    "umask 077; python3 -c 'import secrets; print(\"sk-\" + secrets.token_urlsafe(32))' > keys.txt": (
        only_the_owner_reads("keys.txt")
    ),
    "(umask 077; echo 'HF_TOKEN=hf_...' > out/secrets/environment)": (
        only_the_owner_reads("out/secrets/environment")
    ),
    "vllm-stack fetch Qwen/Qwen3-8B": the_model_is_here,
    "vllm-stack check Qwen/Qwen3-8B --workers 2": _RENDERABLE,
    "vllm-stack check Qwen/Qwen3-8B --workers 2 --tensor-parallel-size 2 -- --max-model-len 8192": (
        _RENDERABLE
    ),
    "vllm-stack check Qwen/Qwen3-8B --workers 2 -- --max-model-len 8192": _RENDERABLE,
    "vllm-stack check MODEL ...": _RENDERABLE,
    "vllm-stack check  -f stack.toml": _RENDERABLE,
    "vllm-stack check /srv/Llama-3.1-70B-Instruct --workers auto --tensor-parallel-size auto": (
        the_page_shows_it("docs/checks.md")
    ),
    "vllm-stack plan Qwen/Qwen3-8B --workers auto --tensor-parallel-size auto": says(
        "^Workers +7, 1 GPU each"
    ),
    "vllm-stack plan   -f stack.toml": says(
        "^Workers +2 of Qwen/Qwen3-32B, 2 GPUs each",
        "worker-2 .* GPU 4 ",
        "^Workers +0 of openai/whisper-large-v3",
    ),
    "vllm-stack render MODEL --workers 2 --systemd": there_is("out/vllm-stack.service", b"#"),
    "vllm-stack bench": _REPORT,
    "vllm-stack bench --plot bench.png --api-key-file key": there_is("bench.png", b"\x89PNG"),
    "vllm-stack bench --slo-ttft 200 --slo-itl 20 --plot bench.png": there_is("bench.png", b"\x89PNG"),
    "docs/rolling.md: vllm-stack roll": of_both_workers("argv", '"--revision", "v2"'),
    "docs/cli.md: vllm-stack roll": of_both_workers("argv", '"--revision", "v2"'),
    "docs/operating.md: vllm-stack roll": of_both_workers("env", "/opt/vllm-0.33/bin/vllm"),
    "vllm-stack drain worker-1": worker_1_is("drained"),
    "vllm-stack readmit worker-1": worker_1_is("ready"),
    "vllm-stack keys add alice --requests-per-minute 60 --concurrent 4 --expires 30d": a_key_is_printed_alone,
    "vllm-stack keys add alice --requests-per-minute 60 --expires 30d": a_key_is_printed_alone,
    "vllm-stack keys list": no_key_is_shown,
    "vllm-stack keys rotate alice --grace 24h": a_key_is_printed_alone,
    "vllm-stack keys revoke alice": no_key_is_good,
    "vllm-stack logs": says("^worker-0 +\\|", "^worker-1 +\\|", "^proxy +\\|", "^supervisord +\\|"),
    "vllm-stack logs worker-0 proxy --since 10m": only_two_are_heard,
    "vllm-stack logs --since 2026-11-26T10:00 --json": lines_are_json,
    "vllm-stack completion fish > ~/.config/fish/completions/vllm-stack.fish": (
        there_is(".config/fish/completions/vllm-stack.fish")
    ),
    ".venv/bin/vllm-stack up --out /tmp/balancer": the_balancer_balances,
    '.venv/bin/python -m pytest tests/unit/test_policy.py -k "stays"': _COLLECTED,
    ".venv/bin/python -m pytest tests/integration/proxy/test_retry.py -x": _COLLECTED,
    ".venv/bin/python -m pytest tests/integration/supervision/test_wedge.py -x": _COLLECTED,
    ".venv/bin/python -m pytest tests/e2e/test_real_vllm.py -x": _COLLECTED,
}
