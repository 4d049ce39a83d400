"""Every family on native kernels, from both file formats: the tokens of plain decoding in fp64."""

from pathlib import Path

import pytest
import torch
from checkpoints import Checkpoints, tiny
from native import team
from test_engine import NUM_TOKENS, PROMPTS, run_all
from test_native import GREEDY, engine
from toy import plain_decode

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.models.family import Family


@pytest.mark.parametrize("family", [f for f in families() if f.gguf], ids=lambda f: f.name)
def test_greedy_equals_plain_decoding(family: Family, tmp_path: Path) -> None:
    source, _ = Checkpoints(tmp_path)(family.name, tiny(family.name))
    convert(source, tmp_path / "m.gguf", "gguf")
    oracle = load_model(open_model(source), torch.float64)
    want = [plain_decode(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]
    for path in (source, tmp_path / "m.gguf"):
        assert run_all(engine(load_model(open_model(path), team=team())), GREEDY) == want
