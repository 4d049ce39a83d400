"""Every example runs as a user would run it, and prints something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_five_short_examples() -> None:
    assert len(EXAMPLES) >= 5
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, f"{path.name} is long for an example"


@pytest.mark.model
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in tests/conftest.py: the suite runs beside other work
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=240, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
