"""MODEL is a directory or a hub name, and its config is read without a model runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_stack.errors import ModelError
from vllm_stack.model.find import read_model


def write_config(directory: Path, config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 32, "num_key_value_heads": 8}, 32),
        ({"n_head": 12}, 12),
        ({"text_config": {"num_attention_heads": 16}, "vision_config": {"num_attention_heads": 9}}, 16),
        ({"num_attention_heads": 5, "text_config": {"hidden_size": 8}}, 5),
        ({"hidden_size": 8}, None),
        ({"num_attention_heads": "many"}, None),
    ],
)
def test_attention_heads_are_found_where_architectures_put_them(
    tmp_path: Path, config: Any, heads: int | None
) -> None:
    found = read_model(str(write_config(tmp_path / "m", config))).config
    assert found is not None
    assert found.attention_heads == heads


def test_a_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "models" / "m", {})
    monkeypatch.chdir(tmp_path)
    model = read_model("models/m")
    assert (model.name, model.source) == (str(tmp_path / "models" / "m"), "directory")


def test_a_directory_may_have_any_printable_name(tmp_path: Path) -> None:
    directory = write_config(tmp_path / "50% of 'it' ; # really", {})
    assert read_model(str(directory)).name == str(directory)


@pytest.mark.parametrize("name", ["gpt2", "org/model", "Qwen/Qwen3-8B", "a.b/c_d-e"])
def test_hub_names_pass_as_they_are(name: str) -> None:
    assert read_model(name, ask=False).name == name


@pytest.mark.parametrize(
    "name",
    ["", "x ;y", "50%", "'q'", '"q"', "a/b/c", "/no/such/dir", "./none", "~nobody/x", "-x", "org/", "ü/x"],
)
def test_what_is_neither_directory_nor_hub_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_model(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "a\x1bb"])
def test_control_characters_are_refused_and_shown_escaped(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_model(name)
    assert name not in str(caught.value)


@pytest.mark.parametrize("name", ["s3://bucket/a/model", "gs://bucket/m", "az://c/m"])
def test_a_place_that_weights_are_streamed_from_passes_as_it_is(name: str) -> None:
    assert read_model(name).source == "store"


def test_a_model_in_mistrals_own_format_has_no_config_to_judge(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.safetensors").write_bytes(b"w" * 100)
    model = read_model(str(tmp_path))
    assert (model.source, model.config, model.weight_bytes) == ("directory", None, 100)


def test_a_config_that_is_elsewhere_is_not_asked_for(tmp_path: Path) -> None:
    assert read_model(str(tmp_path), needs_config=False).config is None


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model(str(tmp_path))


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_model(str(tmp_path))


@pytest.mark.parametrize("revision", [None, "main", "v2", "c0ffee"])
def test_a_cached_hub_model_is_read_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """A commit is a directory of its own; a branch or tag is a file that names the commit."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--model"
    write_config(repository / "snapshots" / "c0ffee", {"num_attention_heads": 7})
    (repository / "refs").mkdir()
    for name in ("main", "v2"):
        (repository / "refs" / name).write_text("c0ffee", "utf-8")
    model = read_model("org/model", revision, ask=False)
    assert model.config is not None
    assert (model.source, model.commit, model.config.attention_heads) == ("cache", "c0ffee", 7)


def test_a_hub_model_that_is_not_cached_leaves_its_heads_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = read_model("org/model", ask=False)
    assert (model.source, model.config) == ("unknown", None)
