"""Which Ray is beside vLLM, whether it can serve, and whether the two go together; nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version

from vllm_stack.errors import RayError
from vllm_stack.vllm_options.package import find_package

# What `ray.serve.llm` stands on beside Ray itself (its extras `serve` and `llm`).
_NEEDED = (
    "aiohttp-cors",
    "fastapi",
    "grpcio",
    "jsonref",
    "mmh3",
    "opencensus",
    "pyarrow",
    "smart_open",
    "starlette",
    "uvicorn",
    "watchfiles",
)
# What serve.yaml is written for, and the vLLM that was served with it.
_OLDEST = Version("2.60")
_TRIED = ((2, 60), (0, 32))
_MADE_FOR = re.compile(
    r"""^Requires-Dist: vllm(?:\[[^\]]*\])?==([\w.+]+); .*extra == ["']llm["']""", re.MULTILINE
)

Verdict = Literal["ok", "warning", "refused"]


@dataclass(frozen=True, slots=True)
class Ray:
    """The Ray of an environment; `made_for` is the vLLM that its own extra asks for, None if unsaid.

    `missing` are the distributions without which it serves no model.
    """

    version: str
    program: Path
    made_for: str | None = None
    missing: tuple[str, ...] = ()


def find_ray(program: Path, argv: Sequence[str]) -> Ray:
    """Find the Ray in the environment of the vLLM that `argv` runs; raises `RayError` if there is none."""
    for packages, scripts in _environments(program, argv):
        for info in sorted(packages.glob("ray-*.dist-info")):
            ray = scripts / "ray"
            if ray.is_file():
                return Ray(
                    version=info.name.removeprefix("ray-").removesuffix(".dist-info"),
                    program=ray,
                    made_for=_made_for(info / "METADATA"),
                    missing=tuple(_missing(packages)),
                )
    raise RayError(
        f"Ray is not installed beside vLLM ({program}): pip install 'vllm-stack[ray]' into that environment"
    )


def _environments(program: Path, argv: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Give where packages and programs of the environment may be: beside the program, or behind a link."""
    package = find_package(program, argv)
    if package is not None:
        yield package.parent, package.parents[3] / "bin"
    for scripts in dict.fromkeys((program.parent, program.resolve().parent)):
        for packages in sorted(scripts.parent.glob("lib/python3*/site-packages")):
            yield packages, scripts


def _made_for(metadata: Path) -> str | None:
    try:
        found = _MADE_FOR.search(metadata.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found[1] if found else None


def _missing(packages: Path) -> Iterator[str]:
    there = {_canonical(info.name.partition("-")[0]) for info in packages.glob("*.dist-info")}
    return (name for name in _NEEDED if _canonical(name) not in there)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def judge_versions(ray: Ray, vllm: str | None) -> tuple[Verdict, str]:
    """Say whether this Ray can run this vLLM, and why not, in a sentence."""
    own, theirs, made_for = _version(ray.version), _version(vllm), _version(ray.made_for)
    if own is None or theirs is None:
        return "warning", f"Ray {ray.version} and vLLM {vllm} are taken on trust: a version is not known"
    if own < _OLDEST:
        return "refused", f"Ray {ray.version} is older than {_OLDEST}, whose words we write: update it"
    if made_for is not None and theirs.release < made_for.release:
        return "refused", (
            f"Ray {ray.version} is made for vLLM {ray.made_for}, which is newer than {vllm}: update vLLM, or "
            "take an older Ray"
        )
    tried = (own.release[:2], theirs.release[:2]) == _TRIED
    if tried or (made_for is not None and theirs.release == made_for.release):
        return "ok", ""
    made = ray.made_for or "of unknown version"
    return "warning", f"Ray {ray.version} is made for vLLM {made}; whether it runs {vllm} was not tried"


def _version(text: str | None) -> Version | None:
    try:
        return None if text is None else Version(text)
    except InvalidVersion:
        return None
