"""What files of LFM2 spell in ways of their own, against transformers on random models."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoints, close, tiny, whole

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError

LFM2 = tiny("lfm2")
BY_NUMBER = {key: value for key, value in LFM2.items() if key != "layer_types"} | {"full_attn_idxs": [1, 3]}
SPECS: dict[str, dict[str, Any]] = {
    "biases and four taps": LFM2 | {"conv_bias": True, "conv_L_cache": 4},
    "the width as it is": LFM2 | {"block_auto_adjust_ff_dim": False},
    "a wider width": LFM2 | {"block_ffn_dim_multiplier": 1.3, "block_ff_dim": 60},
    "layers by number": BY_NUMBER,
    "a head of its own": LFM2 | {"tie_embedding": False},
    "attention alone": LFM2 | {"layer_types": ["full_attention"] * 4},
    "convolutions alone": LFM2 | {"layer_types": ["conv"] * 4},
}


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    path, want = Checkpoints(tmp_path)(name, SPECS[name])
    close(whole(load_model(open_model(path))), want)
    convert(path, tmp_path / "m.gguf", "gguf")
    close(whole(load_model(open_model(tmp_path / "m.gguf"))), want)


def test_published_configs_are_read(tmp_path: Path) -> None:
    """The keys of files of 2025: layers by number, a width that is adjusted, a tie of another name."""
    family = next(f for f in families() if f.name == "lfm2")
    config = json.loads((Checkpoints(tmp_path)("lfm2", LFM2)[0] / "config.json").read_text())
    for key in ("layer_types", "rope_parameters", "intermediate_size", "tie_word_embeddings"):
        config.pop(key)
    old = {"full_attn_idxs": [1, 3], "rope_theta": 1e6, "block_ff_dim": 48, "tie_embedding": False}
    old |= {"block_dim": 32, "block_norm_eps": 1e-5, "block_use_swiglu": True, "conv_dim": 32, "conv_dim_out": 32}
    want = family.read_hf(json.loads((tmp_path / "lfm2" / "config.json").read_text()))
    assert family.read_hf(config | old) == want
    with pytest.raises(ModelFileError, match="full_attn_idxs"):
        family.read_hf(config | old | {"full_attn_idxs": [4]})
