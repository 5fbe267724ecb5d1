"""What a wrapper notes of its worker is believed as long as that wrapper lives."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_stack.records.phase import Phase, read_phase, write_phase


def test_a_phase_is_read_back_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.phase.json"
    before = time.time()
    write_phase(path, Phase.WAITING, "vLLM was killed", until=before + 30)
    note = read_phase(path)
    assert note is not None
    assert (note.phase, note.detail, note.until) == (Phase.WAITING, "vLLM was killed", before + 30)
    assert before <= note.since <= time.time()


def test_the_note_of_a_wrapper_that_is_gone_says_nothing(tmp_path: Path) -> None:
    """It died without a word, and what it said last was: ready."""
    path = tmp_path / "worker-0.phase.json"
    program = (
        "import sys; from pathlib import Path; from vllm_stack.records.phase import Phase, write_phase\n"
        "write_phase(Path(sys.argv[1]), Phase.READY)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert json.loads(path.read_text())["phase"] == "ready"
    assert read_phase(path) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"phase": "ready"}', '{"phase": "dreaming", "pid": 1}'])
def test_a_damaged_note_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker-0.phase.json"
    path.write_text(text)
    assert read_phase(path) is None
