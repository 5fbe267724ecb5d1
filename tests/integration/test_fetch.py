"""`vllm-stack fetch` and `ask_hub`: the real huggingface_hub against a stand-in of the hub.

The library reads its settings when it is imported, so everything runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.polling import until
from tests.support.ports import free_port

REPOSITORY = Path(__file__).parents[2]
NAME = "org/model"
PATIENCE = 60.0
# More than one piece of what huggingface_hub writes at once (10 MiB): there is something to go on with.
WEIGHTS = b"weights!" * (3 << 20)
WEIGHT_FILE = "model.safetensors"
FILES = {
    "config.json": b'{"num_attention_heads": 8}',
    "tokenizer.json": b'{"tokens": []}',
    "chat_template.jinja": b"{{ messages }}",
    WEIGHT_FILE: WEIGHTS,
}
UNWANTED = {"onnx/model.onnx": b"onnx", "pytorch_model.bin": b"pickle", "logo.png": b"png", "x.gguf": b"gguf"}
ASK = """
import json, sys, time
from vllm_stack.model import hub
from vllm_stack.errors import StackError
hub._import_library()
begun = time.monotonic()
try:
    model = hub.ask_hub(sys.argv[1], sys.argv[2] or None, float(sys.argv[3]))
    said = {n: getattr(model, n) for n in ("commit", "gated", "config", "weight_bytes", "download_bytes")}
except StackError as error:
    said = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**said, "seconds": time.monotonic() - begun}))
"""


@pytest.fixture
def env(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose hub is the stand-in, and whose cache is empty."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    kept.pop("VLLM_USE_MODELSCOPE", None)
    return {**kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}


def start(env: dict[str, str], *argv: str, before: str = "") -> subprocess.Popen[str]:
    """Start `vllm-stack fetch`; `before` is Python that runs in it first."""
    code = f"{before}\nimport sys\nfrom vllm_stack.cli import run\nsys.exit(run(['fetch', *sys.argv[1:]]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env=env,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert "Traceback" not in stderr
    return process.returncode, stdout, stderr


def fetch(env: dict[str, str], *argv: str, before: str = "") -> tuple[int, str, str]:
    return end(start(env, *argv, before=before))


def refusal(env: dict[str, str], *argv: str, before: str = "") -> str:
    """Fetch what cannot be fetched, and give the one sentence that says why."""
    code, stdout, stderr = fetch(env, *argv, before=before)
    assert (code, stdout) == (1, "")
    *_, last = stderr.splitlines()
    assert last.startswith("vllm-stack: ")
    return last


def ask(env: dict[str, str], name: str = NAME, revision: str = "", timeout: float = 30.0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, name, revision, str(timeout)],
        env=env,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def snapshot_of(env: dict[str, str], commit: str) -> Path:
    return Path(env["HF_HOME"]) / "hub" / "models--org--model" / "snapshots" / commit


def contents(snapshot: Path) -> dict[str, bytes]:
    return {str(p.relative_to(snapshot)): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()}


def half_files(env: dict[str, str]) -> list[Path]:
    return list(Path(env["HF_HOME"]).rglob("*.incomplete"))


def reference(env: dict[str, str], name: str = "main") -> Path:
    return Path(env["HF_HOME"]) / "hub" / "models--org--model" / "refs" / name


def test_a_model_is_fetched_with_what_vllm_wants_and_without_the_rest(
    hub: FakeHub, env: dict[str, str]
) -> None:
    commit = hub.add(NAME, {**FILES, **UNWANTED})
    code, stdout, stderr = fetch(env, NAME)
    assert code == 0
    assert stdout.splitlines()[-1] == f"vllm-stack render {NAME} --revision {commit}"
    assert contents(snapshot_of(env, commit)) == FILES
    assert reference(env).read_text() == commit
    assert f"{NAME} at commit {commit}: 4 files, 24 MiB" in stderr
    assert str(snapshot_of(env, commit)) in stderr
    assert stderr.splitlines()[-1] == "24 MiB of 24 MiB"
    assert {r.path for r in hub.requests if NAME not in r.path} == set(), "it asked for more than the model"


def test_json_on_stdout_says_what_was_fetched(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    code, stdout, _ = fetch(env, NAME, "--json")
    assert code == 0
    assert json.loads(stdout) == {
        "model": NAME,
        "commit": commit,
        "path": str(snapshot_of(env, commit)),
        "bytes": sum(map(len, FILES.values())),
    }


def test_what_is_there_is_not_downloaded_again(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    fetch(env, NAME)
    hub.requests.clear()
    code, stdout, stderr = fetch(env, NAME)
    assert code == 0
    assert "is already in" in stderr
    assert f"--revision {commit}" in stdout
    assert not hub.asked("HEAD", "")
    hub.requests.clear()
    assert fetch(env, NAME, "--revision", commit)[0] == 0
    assert not hub.requests, "the hub was asked for a commit that is whole"


def test_a_commit_stays_what_it_is_while_main_moves_on(hub: FakeHub, env: dict[str, str]) -> None:
    old = hub.add(NAME, FILES)
    new = hub.repositories[NAME].commit({**FILES, "config.json": b'{"num_attention_heads": 16}'})
    code, stdout, _ = fetch(env, NAME, "--revision", old, "--json")
    assert (code, json.loads(stdout)["commit"]) == (0, old)
    assert contents(snapshot_of(env, old)) == FILES
    assert not reference(env).exists()
    code, stdout, _ = fetch(env, NAME, "--json")
    assert (code, json.loads(stdout)["commit"]) == (0, new)
    assert reference(env).read_text() == new
    assert contents(snapshot_of(env, old)) == FILES
    assert len(hub.asked("GET", WEIGHT_FILE)) == 1, "weights that did not change came twice"


def test_only_the_shards_of_the_index_are_fetched(hub: FakeHub, env: dict[str, str]) -> None:
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    wanted = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "a.safetensors": b"a",
        "b.safetensors": b"bb",
    }
    commit = hub.add(NAME, {**wanted, "all.safetensors": b"all", "fp8/model.safetensors": b"fp8"})
    assert fetch(env, NAME)[0] == 0
    assert contents(snapshot_of(env, commit)) == wanted


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    hub.cut[WEIGHT_FILE] = len(WEIGHTS) // 2
    assert fetch(env, NAME)[0] == 0
    assert contents(snapshot_of(env, commit)) == FILES
    first, second = hub.asked("GET", WEIGHT_FILE)
    assert first.headers["Range"] is None
    assert second.headers["Range"].startswith("bytes=")


@pytest.mark.parametrize("silent", [True, False])
def test_ctrl_c_keeps_what_is_whole_and_says_how_to_go_on(
    hub: FakeHub, env: dict[str, str], silent: bool
) -> None:
    commit = hub.add(NAME, FILES)
    # Between two pieces the library reports nothing, and so cannot be stopped there.
    hub.hold[WEIGHT_FILE] = len(WEIGHTS) // 2 if silent else 0
    process = start(env, NAME)
    assert hub.held.wait(PATIENCE)
    piece = 10 << 20 if silent else 0
    until(
        lambda: any(f.stat().st_size >= piece for f in half_files(env)), PATIENCE, "weights are on their way"
    )
    process.send_signal(signal.SIGINT)
    if not silent:
        hub.release.set()
    code, stdout, stderr = end(process)
    assert (code, stdout) == (130, "")
    # click ends the line with the ^C.
    assert stderr.splitlines()[-2:] == [
        f"Stopped: 3 of 4 files are whole and stay. `vllm-stack fetch {NAME} --revision {commit}` "
        "fetches the rest",
        "",
    ]
    assert half_files(env) == []
    assert not reference(env).exists()
    assert contents(snapshot_of(env, commit)) == {n: c for n, c in FILES.items() if n != WEIGHT_FILE}

    hub.release.set()
    hub.requests.clear()
    code, _, stderr = fetch(env, NAME, "--revision", commit)
    assert code == 0
    assert "1 of 4 files, 24 MiB" in stderr
    assert contents(snapshot_of(env, commit)) == FILES
    assert [r.path.rpartition("/")[2] for r in hub.requests if r.method == "HEAD"] == [WEIGHT_FILE]


def test_two_fetches_at_once_download_once(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    hub.hold[WEIGHT_FILE] = len(WEIGHTS) // 2
    both = [start(env, NAME), start(env, NAME)]
    until(lambda: len(hub.asked("HEAD", WEIGHT_FILE)) == 2, PATIENCE, "both want the weights")
    assert hub.held.wait(PATIENCE)
    hub.release.set()
    assert [end(process)[0] for process in both] == [0, 0]
    assert contents(snapshot_of(env, commit)) == FILES
    assert len(hub.asked("GET", WEIGHT_FILE)) == 1
    assert half_files(env) == []


def test_a_full_disk_is_seen_before_the_download(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, FILES)
    full = "import shutil; u = shutil.disk_usage; shutil.disk_usage = lambda p: u(p)._replace(free=5 << 20)"
    line = refusal(env, NAME, before=full)
    assert "is a download of 24 MiB" in line
    assert "has 5 MiB free" in line
    assert "HF_HOME" in line
    assert not hub.asked("HEAD", "")


def test_a_disk_that_fills_up_meanwhile_is_named(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    line = refusal(env, NAME, before=limit)
    assert "file too large" in line
    assert "HF_HOME" in line
    assert half_files(env) == []
    assert fetch(env, NAME)[0] == 0
    assert contents(snapshot_of(env, commit)) == FILES


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, env: dict[str, str], tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    (tmp_path / "file").write_text("")
    line = refusal({**env, "HF_HOME": str(tmp_path / "file")}, NAME)
    assert str(tmp_path / "file") in line
    assert "not a directory" in line


def test_a_local_directory_needs_no_fetch(env: dict[str, str], tmp_path: Path) -> None:
    assert "nothing to fetch" in refusal(env, str(tmp_path))


@pytest.mark.parametrize("name", ["a/b/c", "./model", "-x", "a--b"])
def test_what_is_no_hub_name_is_refused(env: dict[str, str], name: str) -> None:
    assert "not a hub name" in refusal(env, "--", name)


def test_a_model_without_weights_for_vllm_is_refused(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, {"config.json": b"{}", "model.gguf": b"gguf"})
    assert "has no weights that vLLM loads" in refusal(env, NAME)


def test_a_missing_and_a_private_model_are_named_alike(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add("org/private", FILES, private=True)
    for name in ("org/none", "org/private"):
        line = refusal(env, name)
        assert f"no model '{name}'" in line
        assert "or it is private and no token was sent" in line
        assert "HF_TOKEN" in line
    hub.tokens.add("hf_good")
    line = refusal({**env, "HF_TOKEN": "hf_good"}, "org/none")
    assert "the token in use may not read it" in line
    assert fetch({**env, "HF_TOKEN": "hf_good"}, "org/private")[0] == 0


def test_a_gated_model_names_the_page_with_its_terms(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, FILES, gated=True)
    hub.tokens.update({"hf_stranger", "hf_reader"})
    hub.readers.add("hf_reader")
    for variables in ({}, {"HF_TOKEN": "hf_stranger"}):
        line = refusal({**env, **variables}, NAME)
        assert f"accept its terms at {hub.endpoint}/{NAME}" in line
        assert "HF_TOKEN" in line
    token = Path(env["HF_HOME"]) / "token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("hf_reader\n")
    assert fetch(env, NAME)[0] == 0
    assert ask(env)["gated"] is True
    assert {r.headers["Authorization"] for r in hub.requests if "/cdn/" in r.path} == {None}


def test_a_refused_token_is_named_and_where_it_is_from(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, FILES)
    line = refusal({**env, "HF_TOKEN": "hf_bad"}, NAME)
    assert "refuses the token of HF_TOKEN (Invalid credentials in Authorization header)" in line
    assert "hf_bad" not in line


def test_a_missing_revision_is_named(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, FILES)
    assert f"{NAME} has no revision 'v9'" in refusal(env, NAME, "--revision", "v9")


def test_offline_only_what_is_in_the_cache_counts(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, FILES)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE forbids to ask the hub" in refusal(offline, NAME)
    assert not hub.requests
    fetch(env, NAME)
    hub.requests.clear()
    code, stdout, _ = fetch(offline, NAME)
    assert code == 0
    assert commit in stdout
    assert not hub.requests


def test_a_hub_that_cannot_be_reached_is_named_with_the_reason(env: dict[str, str]) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    answer = ask({**env, "HF_ENDPOINT": endpoint})
    assert answer["error"] == "HubUnreachable"
    assert f"The hub at {endpoint} cannot be used (connection refused)" in answer["message"]
    assert "HF_ENDPOINT" in answer["message"]
    assert "connection refused" in refusal({**env, "HF_ENDPOINT": endpoint}, NAME)


def test_an_endpoint_that_is_no_address_is_named(env: dict[str, str]) -> None:
    answer = ask({**env, "HF_ENDPOINT": "nonsense"})
    assert answer["error"] == "HubUnreachable"
    assert "nonsense" in answer["message"]


@pytest.mark.parametrize(
    ("status", "words"), [(503, "it answers 503"), (429, "no more requests"), (403, "denies access")]
)
def test_a_hub_in_trouble_is_asked_once(hub: FakeHub, env: dict[str, str], status: int, words: str) -> None:
    hub.status = status
    assert words in ask(env)["message"]
    assert len(hub.requests) == 1


def test_the_login_page_of_a_network_is_no_hub(hub: FakeHub, env: dict[str, str]) -> None:
    hub.page = b"<html>please log in</html>"
    answer = ask(env)
    assert answer["error"] == "HubUnreachable"
    assert "does not answer as a hub" in answer["message"]


def test_a_hub_that_trickles_does_not_hold_us(hub: FakeHub, env: dict[str, str]) -> None:
    hub.add(NAME, FILES)
    hub.trickle = True
    begun = time.monotonic()
    answer = ask(env, timeout=1.0)
    assert answer["error"] == "HubUnreachable"
    assert "no answer within 1 s" in answer["message"]
    # Each byte comes in time for the timeouts of the library; the whole would take minutes.
    assert answer["seconds"] < 20
    assert time.monotonic() - begun < 40, "the process did not end"


def test_asking_tells_the_model_and_writes_nothing(hub: FakeHub, env: dict[str, str]) -> None:
    commit = hub.add(NAME, {**FILES, **UNWANTED})
    answer = ask(env)
    assert answer.pop("seconds") < 30
    assert answer == {
        "commit": commit,
        "gated": False,
        "config": {"num_attention_heads": 8},
        "weight_bytes": len(WEIGHTS),
        "download_bytes": sum(map(len, FILES.values())),
    }
    assert not Path(env["HF_HOME"]).exists()
    assert len(hub.requests) == 2


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "pip install socksio"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "x", "whole number"),
        ("HF_HUB_ETAG_TIMEOUT", "1.5", "whole number"),
        ("SSL_CERT_FILE", "/nope", "/nope"),
        ("SSL_CERT_FILE", "/etc/hostname", "/etc/hostname"),
        ("HF_ENDPOINT", "http://[", "HF_ENDPOINT"),
    ],
)
def test_a_variable_that_nothing_can_be_sent_with_is_named(
    hub: FakeHub, env: dict[str, str], variable: str, value: str, words: str
) -> None:
    said = refusal({**env, "NO_PROXY": "", "no_proxy": "", variable: value}, NAME)
    assert variable in said
    assert words in said


@pytest.mark.parametrize(
    "page",
    [
        b"[]",
        b"{}",
        b'{"id": "org/name", "sha": 5}',
        b'{"id": "org/name", "sha": "../../elsewhere"}',
        b'{"id": "org/name", "sha": "0123", "siblings": [5]}',
        b'{"id": "org/name", "sha": "0123", "siblings": [{"rfilename": 5}]}',
        b'{"id": "org/name", "sha": "0123", "siblings": [{"rfilename": "a.bin", "size": "large"}]}',
        b"[" * 200_000,
    ],
    ids=lambda page: page[:80].decode(),
)
def test_a_description_that_is_none_is_not_taken_for_a_hubs(
    hub: FakeHub, env: dict[str, str], page: bytes
) -> None:
    hub.page = page
    answer = ask(env)
    assert answer["error"] == "HubUnreachable"
    assert "\n" not in answer["message"]
