"""What is recorded of vLLM's HTTP is what vLLM says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import REPOSITORY
from tests.surface.operations import VLLM


def test_the_recorded_surface_is_the_one_that_vllm_describes(tmp_path: Path) -> None:
    fresh = tmp_path / "openapi.json"
    words = [sys.executable, "-m", "tests.surface.record", str(fresh)]
    subprocess.run(words, cwd=REPOSITORY, check=True, timeout=110)
    assert json.loads(fresh.read_text()) == json.loads(VLLM.read_text())
