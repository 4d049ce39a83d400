"""Every family against transformers: random checkpoints, old and new spellings, refusals by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BASE, IDS, LLAMA3, SPECS, Checkpoints, close, whole
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stretto.convert.load import load_model
from stretto.convert.model_file import ModelFile, open_model
from stretto.core.errors import ModelFileError, UserError
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.mixers.attention import Attention
from stretto.models import llama
from stretto.models.parts.rope import hf_rope, rope_to_hf
from stretto.models.reader import Reader


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_transformers(name: str, saved: Checkpoints) -> None:
    path, want = saved(name)
    close(whole(load_model(open_model(path))), want)


@pytest.mark.parametrize("form", ["step", "chunked"])
@pytest.mark.parametrize("name", SPECS)
def test_decoding_equals_transformers(name: str, form: str, saved: Checkpoints) -> None:
    path, want = saved(name)
    lm = load_model(open_model(path))
    caches, rows, at = lm.tensor_caches(1), [], 0
    for n in (6, *[1] * (len(IDS) - 6)):
        step = 1 if form == "step" and n == 1 else 0
        seqs = Seqs.of([n], [at], num_step=step)
        rows.append(lm(StepPlan(IDS[at : at + n], seqs, range(n), caches)))
        at += n
    close(torch.cat(rows), want)


def config_of(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def with_config(path: Path, to: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """A copy of a checkpoint directory with another config.json."""
    to.mkdir(exist_ok=True)
    config = {key: value for key, value in config_of(path).items() if key not in drop} | changes
    (to / "config.json").write_text(json.dumps(config))
    weights = to / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to(path / "model.safetensors")
    return to


NEW = ("rope_parameters", "dtype")
OLD: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"},
    "llama-llama3": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama-linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-yarn": {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "mistral": {"rope_theta": 10000.0},
    "qwen2": {"rope_theta": 10000.0, "use_sliding_window": False, "sliding_window": 4096, "layer_types": None},
    "qwen3": {"rope_theta": 10000.0, "use_sliding_window": False, "max_window_layers": 2, "layer_types": None},
    "granite": {"rope_theta": 10000.0},
    "mamba2": {"time_step_limit": [0.0, float("inf")]},
    "hybrid-nope": {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "time_step_limit": [0.0, float("inf")],
        "position_embedding_type": "nope",
        "mamba_d_head": "auto",
        "rope_theta": 10000,
    },
}


@pytest.mark.parametrize("name", OLD)
def test_old_and_new_spelling_are_the_same_model(name: str, saved: Checkpoints, tmp_path: Path) -> None:
    path, _ = saved(name)
    drop = NEW + (("head_dim",) if name == "llama" else ())
    assert open_model(with_config(path, tmp_path, OLD[name], drop)).config == open_model(path).config


def test_layers_block_type_is_another_name_of_layer_types(saved: Checkpoints, tmp_path: Path) -> None:
    path, _ = saved("hybrid-nope")
    kinds = {"layers_block_type": ["mamba", "attention", "mamba", "attention"]}
    assert open_model(with_config(path, tmp_path, kinds, ("layer_types",))).config == open_model(path).config


def test_model_type_stands_in_for_architectures(saved: Checkpoints, tmp_path: Path) -> None:
    for name in ("llama", "hybrid-nope"):
        path, _ = saved(name)
        assert open_model(with_config(path, tmp_path / name, {}, ("architectures",))).config == open_model(path).config


def test_a_written_config_is_read_back_equal(saved: Checkpoints) -> None:
    for name in SPECS:
        model = open_model(saved(name)[0])
        assert model.family.read_hf(model.family.to_hf(model.config)) == model.config, name


@pytest.mark.parametrize("name", SPECS)
def test_transformers_reads_a_written_config(name: str, saved: Checkpoints, tmp_path: Path) -> None:
    path, want = saved(name)
    model = open_model(path)
    with_config(path, tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(model.family.to_hf(model.config)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        close(theirs(torch.tensor([IDS]), use_cache=False).logits[0], want)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.1},
    ],
    ids=str,
)
def test_frequencies_of_wide_heads_equal_transformers(values: dict[str, Any]) -> None:
    spec = BASE | {"head_dim": 64, "max_position_embeddings": 2048, "rope_parameters": values | {"rope_theta": 5e4}}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**spec))
    mixer = llama.FAMILY.read_hf(spec).layers[0].mixer
    assert isinstance(mixer, Attention.Config) and mixer.rope is not None
    torch.testing.assert_close(mixer.rope.frequencies(), theirs.inv_freq, rtol=1e-6, atol=0)
    assert mixer.rope.magnitude == pytest.approx(theirs.attention_scaling)
    assert hf_rope(Reader(rope_to_hf(mixer.rope), "here"), 64) == mixer.rope


# Refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts": ("llama", {"num_local_experts": 4}, "num_local_experts"),
    "granite experts": ("hybrid-nope", {"num_local_experts": 4}, "num_local_experts"),
    "granite experts by default": ("hybrid-nope", {"num_local_experts": None}, "num_local_experts"),
    "quantization": ("llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    "architecture": ("llama", {"architectures": ["LlamaForCausalLMM"]}, "LlamaForCausalLMM"),
    "no architecture": ("llama", {"architectures": None, "model_type": None}, "architecture"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    "rope kind": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    "old rope kind": ("llama", {"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "longrope"),
    "rope without factor": ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    "llama3 without bounds": ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    "rope per kind of layer": ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_param"),
    "rotated in part": ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "yarn untruncated": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        "truncate",
    ),
    "windows of some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "use_sliding_window",
    ),
    "kinds of layers": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "layer names": ("hybrid-nope", {"layer_types": ["mamba", "moe", "mamba", "attention"]}, "layer_types"),
    "positions": ("hybrid-nope", {"position_embedding_type": "alibi"}, "position_embedding_type"),
    "missing size": ("llama", {"hidden_size": None}, "hidden_size"),
    "size of zero": ("llama", {"intermediate_size": 0}, "intermediate_size"),
    "size in words": ("llama", {"num_hidden_layers": "two"}, "num_hidden_layers"),
    "endless layers": ("llama", {"num_hidden_layers": 1 << 30}, "num_hidden_layers"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    "groups that do not divide": ("mamba2", {"n_groups": 3}, "n_groups"),
    "a gate that is not there": ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate"),
    "more than a head is turned": (
        "qwen3_5",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.5}},
        "partial_rotary_factor",
    ),
    "limits": ("mamba2", {"time_step_limit": [1.0, 0.5]}, "time_step_limit"),
    "epsilon": ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str, saved: Checkpoints, tmp_path: Path) -> None:
    name, changes, word = REFUSED[case]
    with pytest.raises(ModelFileError, match=word):
        open_model(with_config(saved(name)[0], tmp_path, changes))


def reshaped(model: ModelFile, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> ModelFile:
    """The checkpoint with other tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model.path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((model.path / "config.json").read_text())
    return open_model(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_refused(saved: Checkpoints, tmp_path: Path) -> None:
    model = open_model(saved("llama")[0])
    norm, query = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ModelFileError, match=norm):
        load_model(reshaped(model, tmp_path, lambda t: t.update({"model.layers.1.input_norm.weight": t.pop(norm)})))
    with pytest.raises(ModelFileError, match=r"does not use[\s\S]*q_norm"):
        load_model(
            reshaped(model, tmp_path, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": t[norm] + 1}))
        )
    with pytest.raises(ModelFileError, match=r"q_proj[\s\S]*\(16, 64\)"):
        load_model(reshaped(model, tmp_path, lambda t: t.update({query: t[query].reshape(16, 64)})))
    load_model(
        reshaped(model, tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": t[norm] + 1}))
    )


def test_a_missing_head_is_not_silently_tied(saved: Checkpoints, tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]

    with pytest.raises(ModelFileError, match=r"lm_head\.weight"):
        load_model(reshaped(open_model(saved("llama")[0]), tmp_path, drop))


def test_fused_tensors_must_be_used_up(saved: Checkpoints, tmp_path: Path) -> None:
    model = open_model(saved("hybrid-nope")[0])
    fused = "model.layers.0.shared_mlp.input_linear.weight"
    for rows in (torch.zeros(81, 32), torch.zeros(79, 32)):
        with pytest.raises(ModelFileError, match="input_linear"):
            load_model(reshaped(model, tmp_path, lambda t, rows=rows: t.update({fused: rows})))


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        open_model(tmp_path / "nothing.gguf")
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelFileError, match=r"neither a GGUF file nor"):
        open_model(tmp_path / "pytorch_model.bin")
