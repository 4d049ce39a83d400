"""What files of Gemma 2 and 3 spell in ways of their own, against transformers on random models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import IDS, Checkpoints, close, tiny, whole
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError
from stretto.models.family import Family

GEMMA3 = tiny("gemma3")
SPECS: dict[str, dict[str, Any]] = {
    "other kinds": GEMMA3 | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
    | {"num_hidden_layers": 3},
    "biases": GEMMA3 | {"attention_bias": True},
    "a head of its own": GEMMA3 | {"tie_word_embeddings": False},
    "no caps": tiny("gemma2") | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
}  # fmt: skip


def family(name: str) -> Family:
    return next(f for f in families() if f.name == name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_transformers(name: str, saved: Checkpoints, tmp_path: Path) -> None:
    path, want = saved(name, SPECS[name])
    close(whole(load_model(open_model(path))), want)
    if name == "no caps":
        with pytest.raises(ModelFileError, match="softcap = None"):  # a missing key means 50 there
            convert(path, tmp_path / "m.gguf", "gguf")
    else:
        convert(path, tmp_path / "m.gguf", "gguf")
        close(whole(load_model(open_model(tmp_path / "m.gguf"))), want)


def test_the_old_spelling_is_the_same_model(saved: Checkpoints) -> None:
    """Of transformers before 5: an interval, two bases, and a scaling of the layers that see all."""
    config = json.loads((saved("gemma3", GEMMA3)[0] / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert config.pop("layer_types") == ["sliding_attention", "full_attention"] * 2
    old = config | {
        "sliding_window_pattern": 2,
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": rope["full_attention"]["factor"]},
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
    }
    ours = family("gemma3").read_hf(json.loads((saved("gemma3", GEMMA3)[0] / "config.json").read_text()))
    assert family("gemma3").read_hf(old) == family("gemma3").read_hf(old | {"hidden_act": "gelu"}) == ours
    defaults = {key: value for key, value in config.items() if not key.startswith("_")} | {"num_hidden_layers": 12}
    layers = family("gemma3").read_hf(defaults).layers
    assert [layer.mixer.window for layer in layers] == ([5] * 5 + [None]) * 2  # type: ignore[union-attr]
    assert {layer.mixer.rope.base for layer in layers} == {10_000.0, 1_000_000.0}  # type: ignore[union-attr]


def test_ggml_knows_the_divisor_of_the_largest_models() -> None:
    """27B: 62 layers, 32 heads of 128 in a width of 5,376, scores over sqrt(168). Others of that many layers, and other
    divisors, cannot be written."""
    large = {**GEMMA3, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 62, "layer_types": None}
    large |= {"hidden_size": 5376, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    config = family("gemma3").read_hf(large | {"query_pre_attn_scalar": 168})
    metadata = family("gemma3").to_gguf(config)
    read = {**metadata, "stretto.tensors": {"token_embd.weight": (64, 5376), "output.weight": (64, 5376)}}
    assert family("gemma3").read_gguf(read).layers == config.layers
    for changes in ({"query_pre_attn_scalar": 128}, {"query_pre_attn_scalar": 168, "num_hidden_layers": 48}):
        with pytest.raises(ModelFileError, match="scale"):
            family("gemma3").to_gguf(family("gemma3").read_hf(large | changes))


def test_other_models_are_refused(saved: Checkpoints) -> None:
    config = json.loads((saved("gemma3", GEMMA3)[0] / "config.json").read_text())
    bad = {
        "use_bidirectional_attention": True,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu",
        "layer_types": ["chunked_attention"] * 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    for key, value in bad.items():
        with pytest.raises(ModelFileError, match=key):
            family("gemma3").read_hf(config | {key: value})
    ours = family("gemma3").read_hf(config)
    with pytest.raises(ModelFileError, match="embedding_multiplier"):
        family("gemma3").to_hf(replace(ours, embedding_multiplier=2.0))
    metadata = family("gemma3").to_gguf(ours) | {"stretto.tensors": {"token_embd.weight": (64, 32)}}
    with pytest.raises(ModelFileError, match="sliding_window_pattern"):
        family("gemma3").read_gguf(metadata | {"gemma3.attention.sliding_window_pattern": [True]})


def test_the_language_model_of_one_that_reads_images(tmp_path: Path) -> None:
    text = {key: value for key, value in GEMMA3.items() if key not in ("model_type", "tie_word_embeddings")}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    spec = {"text_config": text, "vision_config": vision | {"image_size": 16, "patch_size": 8}, "image_token_index": 63}
    torch.manual_seed(0)
    theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model("gemma3", **spec)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(3)
        want = theirs(torch.tensor([IDS]), use_cache=False).logits[0]
    theirs.save_pretrained(tmp_path / "m")
    model = open_model(tmp_path / "m")
    assert model.family.name == "gemma3_vl" and model.config.tie_embeddings and "vision_tower." in model.notes[0]
    close(whole(load_model(model)), want)
    convert(tmp_path / "m", tmp_path / "copy", "hf")
    kept, copied = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "copy"))
    assert kept.keys() == copied.keys() and all(torch.equal(kept[key], copied[key]) for key in kept)
    convert(tmp_path / "m", tmp_path / "m.gguf", "gguf")
    text_alone = open_model(tmp_path / "m.gguf")
    assert text_alone.family.name == "gemma3" and not text_alone.notes
    close(whole(load_model(text_alone)), want)
