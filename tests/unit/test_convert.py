"""Conversions: other readers' view of what we write, and the way back."""

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import IDS, SPECS, Checkpoints, close, same_tensors, whole
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stretto.convert.convert import convert
from stretto.convert.gguf_ import write_gguf
from stretto.convert.load import load_model
from stretto.convert.model_file import ModelFile, open_model
from stretto.convert.show import describe, generation_hints
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, RunError, UserError
from stretto.core.plan import StepPlan
from stretto.models.reader import Reader
from stretto.text.tokenizer import Tokenizer

WRITABLE = [name for name in SPECS if name != "mamba2-limited"]  # GGUF has no key for a time step limit


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and dequantized tensors, by the gguf package."""
    reader = gguf.GGUFReader(path)
    fields = {key: f.contents() for key, f in reader.fields.items()}
    return fields, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def unpermuted(rows: np.ndarray, num_heads: int) -> np.ndarray:
    dim = rows.shape[0] // num_heads
    return rows.reshape(num_heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "mxfp4"])
def test_the_gguf_package_reads_our_llama(dtype: str, saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("llama")
    report = convert(source, tmp_path / "m.gguf", "gguf", dtype)
    fields, tensors = read_gguf(tmp_path / "m.gguf")
    theirs = {name: value.numpy() for name, value in load_file(source / "model.safetensors").items()}
    kinds = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
    kinds |= {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    kinds |= {"mxfp4": gguf.GGMLQuantizationType.MXFP4}
    in_blocks = dtype in ("q8_0", "mxfp4")

    def expected(x: np.ndarray) -> np.ndarray:
        kind = kinds[dtype] if x.shape[-1] % 32 == 0 or not in_blocks else kinds["f16"]
        return gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)

    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    for name, found in (("embed_tokens", "token_embd"), ("lm_head", "output")):
        key = f"model.{name}.weight" if name in names else f"{name}.weight"
        np.testing.assert_array_equal(tensors[f"{found}.weight"], expected(theirs[key]))
    for i in range(2):
        hf = f"model.layers.{i}"
        np.testing.assert_array_equal(tensors[f"blk.{i}.attn_norm.weight"], theirs[f"{hf}.input_layernorm.weight"])
        for ours, name, heads in (("q", "q_proj", 4), ("k", "k_proj", 2), ("v", "v_proj", 0), ("output", "o_proj", 0)):
            got = tensors[f"blk.{i}.attn_{ours}.weight"]
            want = expected(theirs[f"{hf}.self_attn.{name}.weight"])
            np.testing.assert_array_equal(unpermuted(got, heads) if heads else got, want)
        for ours in ("gate", "up", "down"):
            got, want = tensors[f"blk.{i}.ffn_{ours}.weight"], expected(theirs[f"{hf}.mlp.{ours}_proj.weight"])
            np.testing.assert_array_equal(got, want)
    assert len(tensors) == len(theirs) == report.num_tensors
    assert set(report.kept) == ({"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"} if in_blocks else set())
    assert all(reason.startswith("f16") for reason in report.kept.values())
    wanted = {"general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 32}
    wanted |= {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 48}
    wanted |= {"llama.context_length": 128, "llama.rope.dimension_count": 8, "llama.vocab_size": 64}
    assert wanted.items() <= fields.items()
    assert fields["llama.rope.freq_base"] == pytest.approx(10000)
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_mamba_tensors_follow_ggml(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("mamba2")
    convert(source, tmp_path / "m.gguf", "gguf")
    fields, tensors = read_gguf(tmp_path / "m.gguf")
    theirs = {name: value.numpy() for name, value in load_file(source / "model.safetensors").items()}
    mixer = "backbone.layers.1.mixer"
    np.testing.assert_array_equal(tensors["blk.1.ssm_in.weight"], theirs[f"{mixer}.in_proj.weight"])
    np.testing.assert_array_equal(tensors["blk.1.ssm_conv1d.weight"], theirs[f"{mixer}.conv1d.weight"].squeeze(1))
    decay = -np.exp(theirs[f"{mixer}.A_log"].astype(np.float64))[:, None]
    np.testing.assert_allclose(tensors["blk.1.ssm_a"], decay, rtol=6e-8)  # rounded once
    np.testing.assert_array_equal(tensors["blk.1.ssm_d"], theirs[f"{mixer}.D"][:, None])
    np.testing.assert_array_equal(tensors["blk.1.ssm_dt.bias"], theirs[f"{mixer}.dt_bias"])
    np.testing.assert_array_equal(tensors["blk.1.ssm_norm.weight"], theirs[f"{mixer}.norm.weight"].reshape(2, 32))
    wanted = {"mamba2.ssm.conv_kernel": 4, "mamba2.ssm.inner_size": 64, "mamba2.ssm.state_size": 16}
    wanted |= {"mamba2.ssm.time_step_rank": 8, "mamba2.ssm.group_count": 2, "mamba2.attention.head_count": 0}
    assert wanted.items() <= fields.items()


def test_hybrid_metadata_say_which_layers_attend(saved: Checkpoints, tmp_path: Path) -> None:
    for name, rotates in (("hybrid-nope", False), ("hybrid-rope", True)):
        convert(saved(name)[0], tmp_path / f"{name}.gguf", "gguf")
        fields, tensors = read_gguf(tmp_path / f"{name}.gguf")
        assert fields["general.architecture"] == "granitehybrid"
        assert fields["granitehybrid.attention.head_count_kv"] == [0, 2, 0, 2]
        assert fields["granitehybrid.rope.scaling.finetuned"] is rotates
        for key, value in (("logit_scale", 2.5), ("embedding_scale", 3), ("residual_scale", 0.22)):
            assert fields[f"granitehybrid.{key}"] == pytest.approx(value)
        assert fields["granitehybrid.attention.scale"] == pytest.approx(0.11)
        fused = load_file(saved(name)[0] / "model.safetensors")["model.layers.1.shared_mlp.input_linear.weight"].numpy()
        np.testing.assert_array_equal(tensors["blk.1.ffn_gate.weight"], fused[:40])
        np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"], fused[40:])


@pytest.mark.parametrize("name", WRITABLE)
def test_logits_survive_gguf(name: str, saved: Checkpoints, tmp_path: Path) -> None:
    source, want = saved(name)
    convert(source, tmp_path / "m.gguf", "gguf")
    close(whole(load_model(open_model(tmp_path / "m.gguf"))), want)


def test_llama3_frequencies_are_the_published_tensor(saved: Checkpoints, tmp_path: Path) -> None:
    """rope_freqs.weight, after ggml's definition: factor for long waves, 1 for short ones, a ramp between."""
    source, _ = saved("llama-llama3")
    convert(source, tmp_path / "m.gguf", "gguf")
    theta = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    turns = 16 * theta / (2 * np.pi)
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    want = 1 / ((1 - smooth) / 8 + smooth)
    np.testing.assert_allclose(read_gguf(tmp_path / "m.gguf")[1]["rope_freqs.weight"], want, rtol=1e-6)
    with pytest.raises(ModelFileError, match="rope_freqs"):  # made from another context than Llama 3's
        convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    assert not (tmp_path / "back").exists()


BACK = [name for name in WRITABLE if name not in ("llama-llama3", "qwen2-llama3", "hybrid-attention")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BACK)
def test_there_and_back_is_the_same_file(name: str, dtype: torch.dtype, saved: Checkpoints, tmp_path: Path) -> None:
    """Of every spec and dtype, what tests/contracts/test_family.py says of every family."""
    source = tmp_path / "source"
    shutil.copytree(saved(name)[0], source)
    tensors = {key: value.to(dtype) for key, value in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    back = load_file(tmp_path / "back" / "model.safetensors")
    model = open_model(source)
    assert open_model(tmp_path / "back").config == model.config
    same_tensors(model, tensors, back)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_which_tensors_are_stored_in_another_parametrisation(saved: Checkpoints) -> None:
    """By the tables, so that the law above excuses nothing else."""
    found = {}
    for name in ("llama", "qwen3", "granite", "mamba2", "hybrid-rope", "qwen3_5"):
        model = open_model(saved(name)[0])
        stored = model.family.gguf_names(model.config)
        found[name] = {re.sub(r"^blocks\.\d+\.", "", n) for n in stored if stored[n].save or model.names[n].load}
    assert found.pop("qwen3_5") == {
        *("mixer.A_log", "mixer.q_norm", "mixer.k_norm"),
        *("mixer_norm.weight", "channel_norm.weight", "norm.weight"),
    }
    assert found.pop("mamba2") == found.pop("hybrid-rope") == {"mixer.A_log"}
    assert not any(found.values())


def test_small_tensors_are_not_rounded_to_the_codec_of_the_matrices(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("mamba2")
    convert(source, tmp_path / "m.gguf", "gguf", "bf16")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    theirs, back = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    for name in ("norm.weight", "mixer.norm.weight", "mixer.D", "mixer.dt_bias", "mixer.conv1d.bias"):
        key = f"backbone.layers.0.{name}"
        assert back[key].dtype == torch.float32 and torch.equal(back[key], theirs[key]), key
    assert back["backbone.layers.0.mixer.in_proj.weight"].dtype == torch.bfloat16


def test_llama3_of_the_published_context_comes_back(saved: Checkpoints, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(saved("llama")[0], source)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
    config["rope_parameters"] |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_parameters"] |= {"original_max_position_embeddings": 8192}
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    assert open_model(tmp_path / "back").config == open_model(source).config


def test_a_hybrid_without_mamba_layers_is_a_granite_file(saved: Checkpoints, tmp_path: Path) -> None:
    source, want = saved("hybrid-attention")
    convert(source, tmp_path / "m.gguf", "gguf")
    assert open_model(tmp_path / "m.gguf").family.name == "granite"
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back")(torch.tensor([IDS])).logits[0]
    close(theirs, want)


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_same_format_copies_bytes(to: str, saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("hybrid-rope")
    if to == "gguf":
        convert(source, tmp_path / "a.gguf", "gguf", "q8_0")
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "gguf")
        first, second = open_model(tmp_path / "a.gguf"), open_model(tmp_path / "b.gguf")
        assert first.metadata == second.metadata
    else:
        convert(source, tmp_path / "b", "hf")
        first, second = open_model(source), open_model(tmp_path / "b")
    assert first.config == second.config and first.tensors.names() == second.tensors.names()
    for name in first.tensors.names():
        a, b = first.tensors.stored(name), second.tensors.stored(name)
        assert a.codec.name == b.codec.name and a.shape == b.shape and torch.equal(a.data, b.data), name


def test_quantized_values_are_decoded_exactly_for_a_directory(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("hybrid-nope")
    convert(source, tmp_path / "a.gguf", "gguf", "q8_0")
    convert(tmp_path / "a.gguf", tmp_path / "b", "hf")
    stored, back = read_gguf(tmp_path / "a.gguf")[1], load_file(tmp_path / "b" / "model.safetensors")
    np.testing.assert_array_equal(
        back["model.layers.1.shared_mlp.input_linear.weight"].numpy(),
        np.concatenate([stored["blk.1.ffn_gate.weight"], stored["blk.1.ffn_up.weight"]]),
    )
    close(whole(load_model(open_model(tmp_path / "b"))), whole(load_model(open_model(tmp_path / "a.gguf"))))


def test_fused_tensors_of_different_codecs(saved: Checkpoints, tmp_path: Path) -> None:
    """gate and up in two codecs become one f32 tensor of a directory, with the values of each."""
    source, _ = saved("hybrid-nope")
    convert(source, tmp_path / "a.gguf", "gguf", "f32")
    model = open_model(tmp_path / "a.gguf")
    recoded = {"blk.1.ffn_gate.weight": "q8_0", "blk.1.ffn_up.weight": "f16"}

    def load(name: str) -> Stored:
        packed = model.tensors.stored(name)
        return CODECS.card(recoded[name]).make().encode(packed.decode(torch.float32)) if name in recoded else packed

    table = {n: (recoded.get(n, model.held(n).codec), model.held(n).shape) for n in model.tensors.names()}
    write_gguf(tmp_path / "b.gguf", dict(model.metadata), table, load)
    convert(tmp_path / "b.gguf", tmp_path / "c", "hf")
    stored = read_gguf(tmp_path / "b.gguf")[1]
    got = load_file(tmp_path / "c" / "model.safetensors")["model.layers.1.shared_mlp.input_linear.weight"]
    want = np.concatenate([stored["blk.1.ffn_gate.weight"], stored["blk.1.ffn_up.weight"]])
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), want)


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_destinations_are_protected(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("llama")
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        convert(source, tmp_path / "m.gguf", "gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"
    convert(source, tmp_path / "m.gguf", "gguf", overwrite=True)
    open_model(tmp_path / "m.gguf")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        convert(tmp_path / "m.gguf", tmp_path / "d", "hf", overwrite=True)
    (tmp_path / "d" / "notes.txt").unlink()
    for _ in range(2):
        convert(tmp_path / "m.gguf", tmp_path / "d", "hf", overwrite=True)
    assert open_model(tmp_path / "d").config == open_model(source).config
    cases: list[tuple[Path, Path, Any, str | None, str]] = [
        (source, source, "hf", None, "the model itself"),
        (source, tmp_path / "m.bin", "gguf", None, r"does not end in \.gguf"),
        (source, tmp_path / "none" / "m.gguf", "gguf", None, "no directory"),
        (source, tmp_path / "e", "hf", "q8_0", "q8_0"),
        (source, tmp_path / "e.gguf", "gguf", "q6_k", "q6_k"),
        (source, tmp_path / "e.gguf", "onnx", None, "onnx"),
        (source, tmp_path / "m.gguf", "hf", None, "not a directory"),
        (tmp_path / "nothing", tmp_path / "e", "hf", None, "nothing"),
    ]
    for src, dst, to, dtype, word in cases:
        with pytest.raises(UserError, match=word):
            convert(src, dst, to, dtype, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "d"}


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), _Stop()])
def test_nothing_is_left_behind(to: Any, problem: BaseException, saved: Checkpoints, tmp_path: Path) -> None:
    convert(saved("llama")[0], tmp_path / "old.gguf", "gguf")
    dst = tmp_path / ("d" if to == "hf" else "d.gguf")
    convert(tmp_path / "old.gguf", dst, to)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise problem

    with pytest.raises(RunError if isinstance(problem, OSError) else _Stop):
        convert(saved("llama")[0], dst, to, progress=progress, overwrite=True)
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_progress_counts_the_bytes_written(saved: Checkpoints, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convert(saved("llama")[0], tmp_path / "m.gguf", "gguf", progress=lambda a, b: seen.append((a, b)))
    assert seen[-1] == (report.nbytes, report.nbytes) and len(seen) == report.num_tensors
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)


def test_what_a_number_format_cannot_hold_is_refused_by_tensor(saved: Checkpoints, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(saved("llama")[0], source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight"):
        convert(source, tmp_path / "m.gguf", "gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()
    convert(source, tmp_path / "m.gguf", "gguf", "bf16")


def test_what_gguf_cannot_say_is_refused(saved: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="time_step_limit"):
        convert(saved("mamba2-limited")[0], tmp_path / "m.gguf", "gguf")


REFUSED_KEYS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"llama.expert_count": 8}, "expert_count"),
    ("llama", {"llama.rope.scaling.type": "longrope"}, "rope.scaling.type"),
    ("llama", {"llama.rope.dimension_count": 4}, "rope.dimension_count"),
    ("llama", {"llama.attention.value_length": 16}, "value_length"),
    ("llama", {"llama.embedding_scale": 2.0}, "embedding_scale"),
    ("llama", {"llama.attention.head_count_kv": [2, 1]}, "head_count_kv"),
    ("llama", {"llama.feed_forward_length": [48]}, "feed_forward_length"),
    ("llama", {"llama.block_count": 0}, "block_count"),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": "x"}, "layer_norm_rms_epsilon"),
    ("llama", {"general.architecture": "gemma4"}, "gemma4"),
    ("qwen3", {"qwen3.attention.sliding_window": 4096}, "sliding_window"),
    ("mamba2", {"mamba2.ssm.time_step_rank": 7}, "time_step_rank"),
]


def rewritten(source: Path, to: Path, changes: dict[str, Any], drop: str = "") -> ModelFile:
    model = open_model(source)
    names = [name for name in model.tensors.names() if name != drop]
    table = {name: (model.held(name).codec, model.held(name).shape) for name in names}
    write_gguf(to, {**model.metadata, **changes}, table, model.tensors.stored)
    return open_model(to)


@pytest.mark.parametrize(("name", "changes", "word"), REFUSED_KEYS, ids=lambda v: str(v)[:40])
def test_gguf_keys_are_refused_by_name(
    name: str, changes: dict[str, Any], word: str, saved: Checkpoints, tmp_path: Path
) -> None:
    convert(saved(name)[0], tmp_path / "a.gguf", "gguf")
    with pytest.raises(ModelFileError, match=word):
        rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", changes)


def test_gguf_tensors_are_missed_by_name(saved: Checkpoints, tmp_path: Path) -> None:
    convert(saved("mamba2")[0], tmp_path / "a.gguf", "gguf")
    with pytest.raises(ModelFileError, match=r"blk\.1\.ssm_d"):
        load_model(rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", {}, drop="blk.1.ssm_d"))
    with pytest.raises(ModelFileError, match=r"token_embd\.weight"):
        rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", {}, drop="token_embd.weight")


def test_numbers_of_gguf_are_read_as_their_shortest_decimal() -> None:
    read = Reader({"x": float(np.float32(0.22)), "y": 1e-05}, "here", single=True)
    assert (read.number("x"), read.number("y")) == (0.22, 1e-05)


# What show says -------------------------------------------------------------------------------------------------------


def test_describe_counts(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("hybrid-nope")
    theirs = AutoModelForCausalLM.from_pretrained(source)
    page = describe(open_model(source))
    numbers = sum(p.numel() for p in theirs.parameters())
    assert page["params"] == numbers and page["bytes"] == {"f32": 4 * numbers}
    assert page["bytes_per_token"] == 4 * (numbers - 63 * 32)  # one row of an embedding that is not the head
    assert page["layers"] == {"mamba2": 2, "attention": 2}
    assert page["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 2  # layers, k and v, heads, width, bf16
    assert page["state_bytes"] == 2 * (4 * 8 * 8 * 16 + 2 * 3 * (64 + 2 * 16))  # ssm in f32, conv tail in bf16
    assert (page["num_heads"], page["num_kv_heads"], page["head_dim"]) == (4, 2, 8)
    assert page["architecture"] == "GraniteMoeHybridForCausalLM" and page["tokenizer"] is None
    convert(source, tmp_path / "m.gguf", "gguf", "q8_0")
    small = describe(open_model(tmp_path / "m.gguf"))
    assert small["architecture"] == "granitehybrid" and small["params"] == numbers
    same = ("layers", "d_model", "context", "vocab_size", "tied_head", "kv_bytes_per_token", "state_bytes")
    assert all(small[key] == page[key] for key in same)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert sum(small["bytes"].values()) == sum(int(t.n_bytes) for t in reader.tensors)
    json.dumps(page)


def test_generation_hints(saved: Checkpoints, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(saved("llama")[0], source)
    hints = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    (source / "generation_config.json").write_text(json.dumps(hints | {"do_sample": True, "eos_token_id": [2]}))
    assert generation_hints(open_model(source)) == hints
    convert(source, tmp_path / "m.gguf", "gguf")
    assert generation_hints(open_model(tmp_path / "m.gguf")) == pytest.approx(hints)
    assert read_gguf(tmp_path / "m.gguf")[0]["general.sampling.top_k"] == 20
    (source / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(ModelFileError, match="temperature"):
        generation_hints(open_model(source))


# The real model -------------------------------------------------------------------------------------------------------

TEXTS = ["The capital of France is", "def f(x):\n    return x + 1\n", "Ünïcödé 👍 12345 <|im_end|>"]


@pytest.fixture(scope="module")
def smollm2_dir(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("smollm2") / "model"
    convert(smollm2_path, path, "hf")
    yield path
    shutil.rmtree(path)


@pytest.mark.model
def test_transformers_runs_our_export_of_smollm2(smollm2_path: Path, smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    ours = load_model(open_model(smollm2_path))(StepPlan.of([ids]))
    generation = json.loads((smollm2_dir / "generation_config.json").read_text())
    assert {0, 2} <= set(generation["eos_token_id"]) and generation["bos_token_id"] == 1
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        close(theirs(torch.tensor([ids])).logits[0], ours)
        reply = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    assert reply == [504, 3575, 282, 4649, 314, 7042, 30, 2]  # it stops by itself: the directory says where


@pytest.mark.model
def test_smollm2_comes_back_with_its_tokenizer(smollm2_path: Path, smollm2_dir: Path, tmp_path: Path) -> None:
    original = open_model(smollm2_path)
    page = describe(original)
    assert page["bytes"] == {"q4_1": 66_355_200, "q8_0": 30_081_024, "f32": 140_544}
    assert page["bytes_per_token"] == sum(page["bytes"].values())  # the head is the embedding
    assert page["chat_template"] and page["tokenizer"] == "gpt2/smollm" and page["kv_bytes_per_token"] == 23_040
    convert(smollm2_dir, tmp_path / "m.gguf", "gguf", "q8_0")
    back = open_model(tmp_path / "m.gguf")
    assert back.config == original.config
    keys = ("tokens", "merges", "token_type", "pre", "model", "bos_token_id", "eos_token_id", "add_bos_token")
    for key in keys:
        name = f"tokenizer.ggml.{key}"
        assert back.metadata[name] == original.metadata[name], key
    assert back.metadata["tokenizer.chat_template"] == original.metadata["tokenizer.chat_template"]
    theirs = AutoTokenizer.from_pretrained(smollm2_dir)
    ours = Tokenizer.from_gguf(back.metadata)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
