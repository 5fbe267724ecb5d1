"""What the cache of the hub holds, which files vLLM wants, and how a download tells its progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_stack.commands.download import Lines
from vllm_stack.errors import HubError
from vllm_stack.model import hub, hub_cache, hub_files
from vllm_stack.sizes import GIB, MIB

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VARIABLES = (
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_USE_MODELSCOPE"),
)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path / "hub"


def snapshot_with(cache: Path, *files: str, index: dict[str, list[str]] | None = None) -> Path:
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files:
        path = snapshot / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for name, shards in (index or {}).items():
        (snapshot / name).write_text(json.dumps({"weight_map": {f"w{i}": s for i, s in enumerate(shards)}}))
    return snapshot


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "/home/user/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"HF_HOME": "$HOME/h"}, "/home/user/h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
        ({"HF_HUB_CACHE": "~/c", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/home/user/c"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.delenv("HF_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub_cache.cache_directory()) == expected


def test_a_branch_leads_to_its_commit_and_a_commit_to_itself(cache: Path) -> None:
    snapshot = snapshot_with(cache, "config.json")
    references = cache / "models--org--name" / "refs"
    (references / "pr").mkdir(parents=True)
    (references / "main").write_text(COMMIT)
    (references / "pr" / "4").write_text(COMMIT)
    for revision in (None, "main", "pr/4", COMMIT):
        assert hub_cache.find_snapshot("org/name", revision) == snapshot
    for revision in ("other", "..", "../snapshots", "/etc/passwd", "a\0b", "x" * 300):
        assert hub_cache.find_snapshot("org/name", revision) is None
    assert hub_cache.find_snapshot("org/other", None) is None


def test_a_snapshot_without_a_config_is_found(cache: Path) -> None:
    snapshot = snapshot_with(cache, "params.json")
    assert hub_cache.find_snapshot("org/name", COMMIT) == snapshot


@pytest.mark.parametrize(
    ("files", "index", "whole"),
    [
        (["config.json"], {}, False),
        (["model.safetensors"], {}, True),
        (SHARDS, {"model.safetensors.index.json": SHARDS}, True),
        (SHARDS[:1], {"model.safetensors.index.json": SHARDS}, False),
        ([], {"model.safetensors.index.json": SHARDS}, False),
        (SHARDS, {}, True),
        (SHARDS[1:], {}, False),
        (["pytorch_model.bin", "training_args.bin"], {}, True),
        (["training_args.bin"], {}, False),
        (["a.bin"], {"pytorch_model.bin.index.json": ["a.bin", "b.bin"]}, False),
        (["consolidated.safetensors"], {"model.safetensors.index.json": SHARDS}, True),
        (["consolidated-00001-of-00002.safetensors", *SHARDS], {}, False),
        (["original/model.safetensors", "model.gguf"], {}, False),
    ],
)
def test_a_snapshot_is_whole_if_it_has_all_the_weights_that_vllm_loads(
    cache: Path, files: list[str], index: dict[str, list[str]], whole: bool
) -> None:
    assert hub_cache.is_whole(snapshot_with(cache, *files, index=index)) is whole


def test_a_link_to_a_file_that_is_gone_is_no_weight(cache: Path) -> None:
    snapshot = snapshot_with(cache, "config.json")
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert not hub_cache.is_whole(snapshot)


def test_an_index_that_cannot_be_read_makes_no_whole_snapshot(cache: Path) -> None:
    snapshot = snapshot_with(cache, *SHARDS)
    for text in ("{", "[]", "{}"):
        (snapshot / "model.safetensors.index.json").write_text(text)
        assert not hub_cache.is_whole(snapshot)


@pytest.mark.parametrize(
    ("variables", "by"),
    [
        ({}, None),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_HUB_OFFLINE": "yes"}, "HF_HUB_OFFLINE"),
        ({"TRANSFORMERS_OFFLINE": "on"}, "TRANSFORMERS_OFFLINE"),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, None),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "true"}, "TRANSFORMERS_OFFLINE"),
        ({"HF_HUB_OFFLINE": "2"}, None),
    ],
)
def test_offline_is_what_huggingface_hub_takes_for_it(
    variables: dict[str, str], by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.offline() == by
    if by:
        with pytest.raises(HubError, match=f"{by} forbids"):
            hub.ask_hub("org/name", None)


def test_with_modelscope_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    assert hub.uses_modelscope()
    with pytest.raises(HubError, match="VLLM_USE_MODELSCOPE is set"):
        hub.ask_hub("org/name", None)


READ = ["config.json", "generation_config.json", "modeling.py", "preprocessor_config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("weights", "shards", "beside"),
    [
        (["model.safetensors"], [], ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "x.gguf"]),
        (SHARDS, SHARDS, ["model.safetensors", "onnx/model.onnx", "fp8/model.safetensors"]),
        (SHARDS, [], ["model.safetensors"]),
        (["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"], ["c.safetensors"]),
        (["model.safetensors", "vae/model.safetensors"], [], ["original/consolidated.00.pth", "picture.png"]),
        (["consolidated.safetensors"], SHARDS, ["model.safetensors", *SHARDS]),
        (["model.safetensors"], ["model.safetensors"], ["original/consolidated.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], [], ["model.pt"]),
        (["model.pt"], [], ["model.ckpt"]),
        (
            ["model.safetensors", "2_Dense/model.safetensors"],
            ["model.safetensors"],
            ["2_Dense/pytorch_model.bin"],
        ),
        (["pytorch_model.bin", "2_Dense/pytorch_model.bin"], [], []),
        ([], [], ["model.gguf"]),
        ([], [], ["onnx/model.onnx", "sub/model.safetensors"]),
    ],
)
def test_the_files_that_vllm_downloads_are_chosen(
    weights: list[str], shards: list[str], beside: list[str]
) -> None:
    read = [*READ, *(["model.safetensors.index.json"] if shards or weights == SHARDS else [])]
    others, chosen = hub_files.choose_files([*read, *weights, *beside], shards)
    assert set(others) == set(read)
    assert sorted(chosen) == sorted(weights)


def test_looking_into_the_cache_does_not_load_the_library(cache: Path) -> None:
    code = (
        "import sys; from vllm_stack.model.hub_cache import find_snapshot;"
        "from vllm_stack.model.hub import offline;"
        "import vllm_stack.commands.fetch; find_snapshot('org/name', None); offline();"
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lines_of_progress_come_now_and_then_and_say_nothing_twice() -> None:
    now = 0.0
    said: list[str] = []
    lines = Lines(200 * MIB, said.append, clock=lambda: now)
    for second in range(35):
        now = float(second)
        lines.show(second * MIB)
    lines.stop(200 * MIB)
    lines.stop(200 * MIB)
    assert said == [f"{count} MiB of 0.2 GiB" for count in (10, 20, 30)] + ["0.2 GiB of 0.2 GiB"]


@pytest.mark.parametrize(
    ("variable", "value"), [("HF_HUB_CACHE", "link/hub"), ("HF_HOME", "link"), ("XDG_CACHE_HOME", "link")]
)
def test_a_cache_at_a_place_that_may_not_be_read_has_no_model(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(tmp_path / value))
    monkeypatch.setattr("os.readlink", refuse)  # as for /proc/1/root
    assert str(hub_cache.cache_directory()).startswith(str(tmp_path / value))
    assert hub_cache.find_snapshot("org/name", None) is None


@pytest.mark.timeout(10)
def test_a_cache_of_fifos_holds_nothing_that_is_waited_for(cache: Path) -> None:
    snapshot = snapshot_with(cache, "config.json", *SHARDS)
    references = cache / "models--org--name" / "refs"
    references.mkdir()
    os.mkfifo(references / "main")
    os.mkfifo(snapshot / "model.safetensors.index.json")
    assert hub_cache.find_snapshot("org/name", None) is None
    assert hub_files.read_shards(snapshot / "model.safetensors.index.json") is None


def test_a_name_longer_than_a_file_may_have_is_not_in_the_cache() -> None:
    assert hub_cache.find_snapshot("a" * 300, None) is None


def test_an_index_that_is_nested_too_deeply_or_too_large_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "nested").write_text("[" * 200_000)
    with (tmp_path / "large").open("wb") as large:
        large.truncate(3 * GIB)
    assert hub_files.read_shards(tmp_path / "nested") is None
    assert hub_files.read_shards(tmp_path / "large") is None
