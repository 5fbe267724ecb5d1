"""A render takes over no directory that is not a stack's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.errors import OutputError
from vllm_stack.layout import Layout
from vllm_stack.out_directory import check_out


def put(out: Path, *names: str, stack: str | None = None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        (out / name).mkdir()
    if stack is not None:
        (out / "stack.json").write_text(stack)
    return out


@pytest.mark.parametrize("place", ["new", "new/deep/er"])
def test_a_directory_that_is_not_there_or_empty_is_taken(tmp_path: Path, place: str) -> None:
    check_out(Layout.at(tmp_path / place))
    check_out(Layout.at(tmp_path))


def test_a_stack_is_rendered_over_whatever_its_owner_has_put_beside_it(tmp_path: Path) -> None:
    out = put(tmp_path / "out", "secrets", "logs", "run", "notes", stack='{"door": {}, "workers": []}')
    check_out(Layout.at(out))


def test_what_a_broken_off_render_has_left_is_gone_on_with(tmp_path: Path) -> None:
    out = put(tmp_path / "out", "secrets", "logs")
    (out / ".proxy.json.4711").touch()
    check_out(Layout.at(out))


@pytest.mark.parametrize(
    ("names", "stack"),
    [
        (("Documents",), None),
        (("run", "logs"), None),
        (("run", "logs", "secrets", "etc"), None),
        ((), '{"mine": 1}'),
        (("run", "logs", "secrets"), "no JSON"),
    ],
)
def test_a_directory_of_somebody_elses_is_refused(
    tmp_path: Path, names: tuple[str, ...], stack: str | None
) -> None:
    out = put(tmp_path / "d", *names, stack=stack)
    with pytest.raises(OutputError, match="is not empty, and no stack is in it"):
        check_out(Layout.at(out))


def test_the_root_of_the_machine_is_refused() -> None:
    with pytest.raises(OutputError, match="--out / is not empty"):
        check_out(Layout.at(Path("/")))


def test_a_file_and_what_would_lie_below_it_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(OutputError, match="is a file"):
            check_out(Layout.at(tmp_path / out))
