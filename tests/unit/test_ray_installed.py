"""Which Ray is found beside vLLM, by what lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.errors import RayError
from vllm_stack.ray.installed import find_ray, judge_versions

PACKAGES = [
    *("aiohttp_cors", "fastapi", "grpcio", "jsonref", "mmh3", "opencensus", "pyarrow", "smart_open"),
    *("starlette", "uvicorn", "watchfiles"),
]


def environment(home: Path, *packages: str, ray: bool = True) -> Path:
    """Make an environment with a `vllm`, and give that program."""
    site = home / "lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (home / "bin").mkdir()
    for name in packages:
        (site / f"{name}-1.0.dist-info").mkdir()
    if ray:
        info = site / "ray-2.60.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            'Requires-Dist: vllm[audio]==0.29.0; extra == "llm"\nRequires-Dist: fastapi; extra == "llm"\n'
        )
        (home / "bin/ray").write_text("#!/bin/sh\n")
    vllm = home / "bin/vllm"
    vllm.write_text(f"#!{home}/bin/python\n")
    return vllm


def test_a_ray_is_found_with_the_vllm_it_was_made_for(tmp_path: Path) -> None:
    vllm = environment(tmp_path, *PACKAGES)
    found = find_ray(vllm, (str(vllm),))
    assert (found.version, found.program, found.made_for) == ("2.60.0", tmp_path / "bin/ray", "0.29.0")
    assert found.missing == ()


def test_a_ray_is_found_behind_a_link_to_vllm(tmp_path: Path) -> None:
    vllm = environment(tmp_path / "env", *PACKAGES)
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin/vllm"
    link.symlink_to(vllm)
    assert find_ray(link, (str(link),)).program == tmp_path / "env/bin/ray"


def test_what_ray_lacks_is_named(tmp_path: Path) -> None:
    vllm = environment(tmp_path, *(name for name in PACKAGES if name not in ("pyarrow", "aiohttp_cors")))
    assert find_ray(vllm, (str(vllm),)).missing == ("aiohttp-cors", "pyarrow")


def test_where_there_is_no_ray_the_way_out_is_named(tmp_path: Path) -> None:
    vllm = environment(tmp_path, *PACKAGES, ray=False)
    with pytest.raises(RayError) as raised:
        find_ray(vllm, (str(vllm),))
    assert str(vllm) in str(raised.value)
    assert "pip install 'vllm-stack[ray]'" in str(raised.value)


@pytest.mark.parametrize(
    ("vllm", "verdict"),
    [
        ("0.32.0+cpu", "ok"),
        ("0.32.1", "ok"),
        ("0.29.0", "ok"),
        ("0.28.0", "refused"),
        ("0.33.0", "warning"),
        (None, "warning"),
        ("odd", "warning"),
    ],
)
def test_versions_are_judged_by_what_ray_was_made_for_and_what_was_tried(
    vllm: str | None, verdict: str, tmp_path: Path
) -> None:
    found = find_ray(environment(tmp_path, *PACKAGES), (str(tmp_path / "bin/vllm"),))
    assert judge_versions(found, vllm)[0] == verdict
