"""Qwen3.5 in GGUF files: as llama.cpp's converter lays them out, written here by the gguf package."""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import IDS, SPECS, Checkpoints, close, whole
from gguf import quants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from stretto.codecs._shared import BlockCodec
from stretto.convert.convert import convert
from stretto.convert.load import load_model, matrix_codecs, stored_columns
from stretto.convert.model_file import families, open_model
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError

NAMES = ("qwen3_5", "qwen3_5-irregular")
PLAIN = ("out_proj", "down_proj")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def by_key_head_last(x: np.ndarray, axis: int, spec: dict[str, Any], width: int) -> np.ndarray:
    """Value heads [key head, its value heads] -> [value heads of a key head, key head], along one axis."""
    keys, values = spec["linear_num_key_heads"], spec["linear_num_value_heads"]
    parts = x.reshape(*x.shape[:axis], keys, values // keys, width, *x.shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(x.shape)


def transformed(name: str, x: np.ndarray, spec: dict[str, Any]) -> tuple[str, np.ndarray]:
    """What the converter makes of one tensor: the name that is looked up, and the numbers."""
    key_rows = 2 * spec["linear_num_key_heads"] * spec["linear_key_head_dim"]
    width = spec["linear_value_head_dim"]
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        x = x.squeeze()
        x = np.concatenate([x[:key_rows], by_key_head_last(x[key_rows:], 0, spec, width)])
    elif name.endswith("in_proj_z.weight"):
        x = by_key_head_last(x, 0, spec, width)
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        x = by_key_head_last(x, 0, spec, 1)
    elif name.endswith("linear_attn.out_proj.weight"):
        x = by_key_head_last(x, 1, spec, width)
    if name.endswith("A_log"):
        x = -np.exp(x)
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        x = x + 1
    return name.replace(".dt_bias", ".dt_proj.bias"), x


def converted(source: Path, to: Path, spec: dict[str, Any], *, ahead: int = 0, rows: str = "F32") -> Path:
    """A checkpoint of transformers as a GGUF file; ahead: layers for further tokens; rows: type of wide matrices."""
    writer = gguf.GGUFWriter(to, "qwen35")
    writer.add_block_count(spec["num_hidden_layers"] + ahead)
    writer.add_context_length(spec["max_position_embeddings"])
    writer.add_embedding_length(spec["hidden_size"])
    writer.add_feed_forward_length(spec["intermediate_size"])
    writer.add_head_count(spec["num_attention_heads"])
    writer.add_head_count_kv(spec["num_key_value_heads"])
    writer.add_key_length(spec["head_dim"])
    writer.add_value_length(spec["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(spec["head_dim"] // 2)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(spec["linear_key_head_dim"])
    writer.add_ssm_group_count(spec["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(spec["linear_num_value_heads"])
    writer.add_ssm_inner_size(spec["linear_num_value_heads"] * spec["linear_value_head_dim"])
    writer.add_full_attention_interval(2)
    if ahead:
        writer.add_uint32("qwen35.nextn_predict_layers", ahead)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN35, spec["num_hidden_layers"])
    for name, value in load_file(source / "model.safetensors").items():
        found, x = transformed(name, value.numpy(), spec)
        theirs = names.get_name(found, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        kind = gguf.GGMLQuantizationType[rows if name.endswith(tuple(f"{p}.weight" for p in PLAIN)) else "F32"]
        writer.add_tensor(theirs, quants.quantize(np.ascontiguousarray(x), kind), raw_dtype=kind)
    for i in range(ahead):
        writer.add_tensor(f"blk.{spec['num_hidden_layers'] + i}.nextn.enorm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_converted_file_is_the_same_model(ahead: int, saved: Checkpoints, tmp_path: Path) -> None:
    source, want = saved("qwen3_5")
    model = open_model(converted(source, tmp_path / "m.gguf", SPECS["qwen3_5"], ahead=ahead))
    assert model.config == open_model(source).config
    assert [bool(re.search("predict further tokens", note)) for note in model.notes] == [True] * ahead
    close(whole(load_model(model)), want)


def test_we_write_what_the_converter_writes(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("qwen3_5")
    convert(source, tmp_path / "ours.gguf", "gguf")
    converted(source, tmp_path / "theirs.gguf", SPECS["qwen3_5"])
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    wanted = {t.name: t.data for t in theirs.tensors}
    assert {t.name for t in ours.tensors} == wanted.keys()
    for tensor in ours.tensors:
        np.testing.assert_allclose(tensor.data, wanted[tensor.name], rtol=1.2e-7, atol=0, err_msg=tensor.name)
    said = {key: f.contents() for key, f in theirs.fields.items() if key.startswith(("qwen35.", "general.arch"))}
    written = {key: f.contents() for key, f in ours.fields.items()}
    assert said == {key: written.get(key) for key in said}


def test_quantized_matrices_stay_as_they_are(saved: Checkpoints, tmp_path: Path) -> None:
    """Two heads of 16 columns share the scales of out_proj: in another order of heads it would have to be decoded."""
    spec = SPECS["qwen3_5"] | {"linear_value_head_dim": 16, "intermediate_size": 64}
    source, _ = saved("heads of 16", spec)
    model = open_model(converted(source, tmp_path / "m.gguf", spec, rows="Q8_0"))
    assert matrix_codecs(model) == {"f32", "q8_0"}
    file = {t.name: quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    lm = load_model(model)
    for i in (0, 2):
        found = lm.blocks[i].mixer.out_proj.weight.detach().numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(found, file[f"blk.{i}.ssm_out.weight"])
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    close(whole(load_model(open_model(tmp_path / "back"))), whole(lm))


@pytest.mark.parametrize("codec", [card.name for card in CODECS.cards()])
@pytest.mark.parametrize("chunk", [256, 32, 8])
def test_columns_of_every_codec_move_exactly(codec: str, chunk: int) -> None:
    made: BlockCodec = CODECS.card(codec).make()
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 60, (3, made.row_bytes(1024)), dtype=np.uint8))
    stored = Stored(made, (3, 1024), raw)
    order = torch.arange(1024).view(2, -1, chunk).transpose(0, 1).reshape(-1)
    moved = stored_columns(stored, order)
    assert torch.equal(moved.decode(torch.float32), stored.decode(torch.float32)[:, order])
    assert moved.codec.name == (codec if chunk % made.block == 0 else "f32")


# The model that reads images -----------------------------------------------------------------------------------------

VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}


@pytest.mark.parametrize("tied", [False, True])
def test_the_language_model_of_one_that_reads_images(tied: bool, saved: Checkpoints, tmp_path: Path) -> None:
    text = {key: value for key, value in SPECS["qwen3_5"].items() if key != "model_type"}
    spec = {"text_config": text, "vision_config": VISION | {"out_hidden_size": 32, "num_position_embeddings": 4}}
    torch.manual_seed(0)
    theirs = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("qwen3_5", tie_word_embeddings=tied, **spec)
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(3)
        want = theirs(torch.tensor([IDS]), use_cache=False).logits[0]
    theirs.save_pretrained(tmp_path / "m")
    model = open_model(tmp_path / "m")
    assert model.config.tie_embeddings == tied and "model.visual." in model.notes[0]
    close(whole(load_model(model)), want)
    convert(tmp_path / "m", tmp_path / "copy", "hf")
    kept, copied = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "copy"))
    assert kept.keys() == copied.keys() and all(torch.equal(kept[key], copied[key]) for key in kept)
    convert(tmp_path / "m", tmp_path / "m.gguf", "gguf")
    text_alone = open_model(tmp_path / "m.gguf")
    assert text_alone.family.name == "qwen3_5" and not text_alone.notes
    close(whole(load_model(text_alone)), want)


def test_a_config_without_the_language_model_is_refused(tmp_path: Path) -> None:
    family = next(f for f in families() if f.name == "qwen3_5_vl")
    for inner in (None, "qwen"):
        with pytest.raises(ModelFileError, match="text_config"):
            family.read_hf({"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": inner})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "further layers": ({"qwen35.nextn_predict_layers": 4}, "nextn_predict_layers"),
    "turned part": ({"qwen35.rope.dimension_count": 32}, "rope.dimension_count"),
    "odd part": ({"qwen35.rope.dimension_count": 7}, "pairs"),
    "groups": ({"qwen35.ssm.group_count": 3}, "group_count"),
    "kinds": ({"qwen35.attention.recurrent_layers": [True]}, "recurrent_layers"),
}


@pytest.mark.parametrize("case", BAD)
def test_metadata_that_cannot_be_are_refused(case: str, saved: Checkpoints, tmp_path: Path) -> None:
    changes, word = BAD[case]
    convert(saved("qwen3_5")[0], tmp_path / "m.gguf", "gguf")
    model = open_model(tmp_path / "m.gguf")
    shapes = {name: model.held(name).shape for name in model.tensors.names()}
    with pytest.raises(ModelFileError, match=word):
        model.family.read_gguf({**model.metadata, "stretto.tensors": shapes, **changes})
