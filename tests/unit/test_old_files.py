"""Files that an earlier version wrote are read, and say what they said (tests/golden/make_checkpoints.py)."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from stretto import LLM, Sampling

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "checkpoints.json").read_text())
CASES = [(name, how) for name in GOLDEN if name not in ("commit", "prompts") for how in GOLDEN[name]["tokens"]]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_file_of_an_earlier_version_gives_the_same_tokens(name: str, backend: str, tmp_path: Path) -> None:
    files = GOLDEN[name]["files"]
    for file, text in files.items():
        (tmp_path / file).write_bytes(zlib.decompress(base64.b64decode(text)))
    path = tmp_path / next(iter(files)) if len(files) == 1 else tmp_path
    llm = LLM(path, draft="none", backend=backend, context=64)
    done = llm.generate(GOLDEN["prompts"], Sampling(temperature=0, max_tokens=12, ignore_eos=True))
    assert [list(result.token_ids) for result in done] == GOLDEN[name]["tokens"][backend]
