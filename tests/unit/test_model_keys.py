"""Every key that changes the result is read, or refused by name where it is not neutral: a table over all families."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from checkpoints import BASE, HYBRID, LLAMA3, SPECS, Checkpoints
from gguf_files import rewritten
from transformers import AutoConfig

from stretto.convert.convert import convert
from stretto.convert.gguf_ import GGUFFile
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError
from stretto.mixers.attention import Attention
from stretto.models._keys import GGUF_KEYS, GGUF_ROPE_KEYS, HF_KEYS, HF_ROPE_KEYS
from stretto.models.family import Family
from stretto.models.lm import LMConfig
from stretto.models.reader import Reader

MODELS = ("llama", "mistral", "qwen2", "qwen3", "granite", "hybrid-rope", "mamba2", "qwen3_5")
ROTATED = tuple(name for name in MODELS if name != "mamba2")
# Which of the three positions of an image turns a pair: where text stands they are one.
SECTIONS = {"qwen3_5": ("mrope_section", "mrope_interleaved", "rope.dimension_sections")}

# Keys that a family needs: what is neutral for others is another model.
NEEDED = {"qwen3_5": ("attn_output_gate", "partial_rotary_factor")}


# Qwen's window needs three keys to be one; what `rope_parameters` says goes before a key outside.
COMPANIONS: dict[str, dict[str, Any]] = {
    "partial_rotary_factor": {"rope_parameters": None},
    "sliding_window": {"use_sliding_window": True, "max_window_layers": 0},
    "use_sliding_window": {"sliding_window": 4, "max_window_layers": 0},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def gguf_files(saved: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gguf")
    for name in MODELS:
        convert(saved(name)[0], root / f"{name}.gguf", "gguf", "f32")
    return {name: root / f"{name}.gguf" for name in MODELS}


def other_than(neutral: tuple[Any, ...]) -> Any:
    """A value of the same kind that is not neutral."""
    if any(isinstance(value, str) for value in neutral):
        return "something_else"
    if any(isinstance(value, list) for value in neutral):
        return [3, 1]
    if True in neutral and 1 not in [value for value in neutral if not isinstance(value, bool)]:
        return False
    return 7


def hf_config(saved: Checkpoints, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((saved(name)[0] / "config.json").read_text())
    return config


def family_of(config: Mapping[str, Any]) -> Family:
    return next(f for f in families() if config["architectures"][0] in f.hf)


def counts(read: Any, plain: LMConfig, key: str) -> None:
    """Reading with the key gives another model than without, or names the key."""
    try:
        found = read()
    except ModelFileError as problem:
        assert key in problem.error, problem
    else:
        assert found != plain, f"{key} is silently ignored"


@pytest.mark.parametrize("table", [HF_KEYS, GGUF_KEYS], ids=["config.json", "GGUF"])
def test_of_several_keys_the_first_of_the_table_is_named(table: Mapping[str, tuple[Any, ...]]) -> None:
    """Whatever the order of the file, and of sets in this process."""
    keys = list(table)
    for first in range(len(keys)):
        read = Reader({key: other_than(table[key]) for key in reversed(keys[first:])}, "a file")
        with pytest.raises(ModelFileError, match=f"^error: a file: {re.escape(keys[first])} = "):
            read.refuse_unread(table)


@pytest.mark.parametrize("name", MODELS)
def test_config_keys_are_read_or_refused(name: str, saved: Checkpoints) -> None:
    config = hf_config(saved, name)
    family = family_of(config)
    plain = family.read_hf(config)
    for key, neutral in HF_KEYS.items():
        changed = {**config, **COMPANIONS.get(key, {}), key: other_than(neutral)}
        counts(lambda: family.read_hf(changed), plain, key)  # noqa: B023  called at once
        for value in (None, *neutral):
            if key not in config and value is not True and (value is None or key not in NEEDED.get(name, ())):
                assert family.read_hf({**config, key: value}) == plain, f"{key} = {value} is neutral"


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ROTATED)
def test_rotary_config_keys_are_read_or_refused(name: str, spelling: str, saved: Checkpoints) -> None:
    config = hf_config(saved, name)
    family = family_of(config)
    values = {
        "linear": {"factor": 4.0},
        "llama3": LLAMA3,
        "yarn": {"factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    }
    read_keys = {"rope_theta": 5e5, "original_max_position_embeddings": 64}
    for kind, own in values.items():
        base = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 16, **own}
        plain = family.read_hf(config | {spelling: base})
        for key, neutral in HF_ROPE_KEYS.items():
            if key in SECTIONS.get(name, ()):
                assert family.read_hf(config | {spelling: base | {key: other_than(neutral)}}) == plain
                continue
            counts(lambda: family.read_hf(config | {spelling: base | {key: other_than(neutral)}}), plain, key)  # noqa: B023
        for key in ("rope_theta", *own, *(["original_max_position_embeddings"] if kind != "linear" else [])):
            value = read_keys.get(key, 3.0)
            assert family.read_hf(config | {spelling: base | {key: value}}) != plain, f"{kind} ignores {key}"
    assert family.read_hf(config | {spelling: {"rope_type": "default", "rope_theta": 5e5}}) != family.read_hf(config)


@pytest.mark.parametrize("name", MODELS)
def test_gguf_keys_are_read_or_refused(name: str, gguf_files: dict[str, Path]) -> None:
    model = open_model(gguf_files[name])
    arch = str(model.metadata["general.architecture"])
    shapes = {key: model.held(key).shape for key in model.tensors.names()}
    known = {**model.metadata, "stretto.tensors": shapes}
    keys = {**GGUF_KEYS, **(GGUF_ROPE_KEYS if name in ROTATED else {})}
    read = {"rope.scaling.factor": 4.0, "rope.scale_linear": 4.0, "rope.freq_base": 7e5} if name in ROTATED else {}
    for key, neutral in keys.items():
        if key in SECTIONS.get(name, ()):
            assert model.family.read_gguf({**known, f"{arch}.{key}": other_than(neutral)}) == model.config
            continue
        counts(lambda: model.family.read_gguf({**known, f"{arch}.{key}": other_than(neutral)}), model.config, key)  # noqa: B023
        for value in neutral:
            if f"{arch}.{key}" not in known:
                assert model.family.read_gguf({**known, f"{arch}.{key}": value}) == model.config, f"{key} = {value}"
    for key, value in read.items():
        assert model.family.read_gguf({**known, f"{arch}.{key}": value}) != model.config, f"{key} is ignored"


# Completeness: what the packages that define the formats know ---------------------------------------------------------

HARMLESS_HF = frozenset(
    """intermediate_size architectures model_type transformers_version dtype torch_dtype use_cache return_dict
    output_hidden_states output_attentions id2label label2id problem_type chunk_size_feed_forward
    _name_or_path initializer_range pretraining_tp attention_dropout bos_token_id eos_token_id pad_token_id
    output_router_logits router_aux_loss_coef num_experts_per_tok mamba_chunk_size chunk_size
    residual_in_fp32 rescale_prenorm_residual time_step_rank time_step_min time_step_max time_step_floor""".split()  # noqa: SIM905  many words
)
"""Keys of config.json that do not change what is computed: names, labels, training, the order of sums."""
HARMLESS_GGUF = frozenset(
    """vocab_size tensor_data_layout leading_dense_block_count expert_feed_forward_length expert_used_count
    expert_shared_feed_forward_length expert_chunk_feed_forward_length expert_group_count
    expert_group_used_count expert_weights_scale expert_weights_norm expert_gating_func expert_group_scale
    experts_per_group moe_every_n_layers interleave_moe_layer_step nextn_predict_layers
    decoder_start_token_id altup.active_idx time_mix_extra_dim time_decay_extra_dim attention.decay_lora_rank
    attention.iclr_lora_rank attention.value_residual_mix_lora_rank attention.gate_lora_rank
    attention.group_norm_epsilon rope.scaling.finetuned""".split()  # noqa: SIM905  many words
)
"""Keys of GGUF files that mean something for other architectures only, or beside a key of `GGUF_KEYS`."""


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_every_field_of_transformers_config_classes_is_known(name: str, saved: Checkpoints) -> None:
    spec = dict(SPECS[name])
    kind = spec.pop("model_type")
    config = AutoConfig.for_model(kind, **spec).to_dict()
    config["architectures"] = hf_config(saved, name)["architectures"]
    read = Reader(config, "config.json")
    family_of(config).from_hf(read)
    unknown = AutoConfig.for_model(kind).to_dict().keys() - read.seen - HF_KEYS.keys() - HARMLESS_HF
    assert not unknown, f"read, refuse or call harmless: {sorted(unknown)}"


@pytest.mark.full
def test_every_key_of_the_gguf_package_is_known(gguf_files: dict[str, Path]) -> None:
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM)
    names = {value for group in groups for value in vars(group).values() if isinstance(value, str)}
    known = {name.removeprefix("{arch}.") for name in names if name.startswith("{arch}.") and "{dense}" not in name}
    seen: set[str] = set()
    for path in gguf_files.values():
        file = GGUFFile(path)
        shapes = {key: info.shape for key, info in file.tensors.items()}
        arch = file.metadata["general.architecture"]
        yarn = {f"{arch}.rope.scaling.type": "yarn", f"{arch}.rope.scaling.factor": 4.0}
        read = Reader({**file.metadata, **yarn, "stretto.tensors": shapes}, "a file", prefix=f"{arch}.", single=True)
        next(f for f in families() if arch in f.gguf).from_gguf(read)
        seen |= read.seen
    unknown = known - seen - GGUF_KEYS.keys() - GGUF_ROPE_KEYS.keys() - HARMLESS_GGUF
    assert not unknown, f"read, refuse or call harmless: {sorted(unknown)}"


# What single keys mean ------------------------------------------------------------------------------------------------


def rope_of(path: Path) -> Any:
    mixer = open_model(path).config.layers[0].mixer
    assert isinstance(mixer, Attention.Config)
    return mixer.rope


def test_old_gguf_spellings_of_linear_scaling(gguf_files: dict[str, Path], tmp_path: Path) -> None:
    """As ggml's loader reads them: a factor without a kind is linear, `scale_linear` is the factor of old files."""
    ways: dict[str, dict[str, Any]] = {
        "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        "old": {"llama.rope.scale_linear": 4.0},
        "no kind": {"llama.rope.scaling.factor": 4.0},
        "none": {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        "zero": {"llama.rope.scaling.factor": 0.0},
    }
    ropes = {way: rope_of(rewritten(gguf_files["llama"], tmp_path / f"{way}.gguf", keys)) for way, keys in ways.items()}
    plain = rope_of(gguf_files["llama"])
    assert ropes["linear"] == ropes["old"] == ropes["no kind"]
    assert (ropes["linear"].scaling, ropes["linear"].factor) == ("linear", 4.0)
    assert ropes["none"] == ropes["zero"] == plain


def test_yarn_without_its_original_length_was_trained_with_the_context(
    gguf_files: dict[str, Path], tmp_path: Path
) -> None:
    keys = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    rope = rope_of(rewritten(gguf_files["llama"], tmp_path / "m.gguf", keys))
    assert (rope.scaling, rope.original_context) == ("yarn", BASE["max_position_embeddings"])


def test_mistral_is_known_by_its_model_type_alone(saved: Checkpoints) -> None:
    config = hf_config(saved, "mistral")
    alone = {key: value for key, value in config.items() if key != "architectures"}
    family = family_of(config)
    assert family.read_hf(alone) == family.read_hf(config)
    mixer = family.read_hf({key: value for key, value in config.items() if key != "sliding_window"}).layers[0].mixer
    assert (
        isinstance(mixer, Attention.Config) and mixer.window == 4096
    )  # what transformers' class says of an absent key


CONTEXTS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 160),
    "yarn as model cards say": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    "yarn, length stretched": ({"rope_type": "yarn", "factor": 1.25, "original_max_position_embeddings": 128}, 160),
    "yarn of the length": ({"rope_type": "yarn", "factor": 2.0}, 320),
    "llama3": ({"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 40}, 320),
    "linear": ({"rope_type": "linear", "factor": 2.0}, 320),
}


@pytest.mark.parametrize("case", CONTEXTS)
def test_the_longest_text_of_stretched_positions(case: str, saved: Checkpoints, tmp_path: Path) -> None:
    """And a written model says the same as the one that was read."""
    scaling, want = CONTEXTS[case]
    family = family_of(hf_config(saved, "llama"))
    config = hf_config(saved, "llama") | {"max_position_embeddings": 160, "rope_scaling": scaling or None}
    ours = family.read_hf(config)
    assert ours.context == want
    assert family.read_hf(family.to_hf(ours)) == ours
    if scaling.get("rope_type") != "llama3":  # GGUF stores that one as a tensor, which has no length
        shapes = {"stretto.tensors": {"token_embd.weight": (64, 32), "output.weight": (64, 32)}}
        assert family.read_gguf({**family.to_gguf(ours), **shapes}) == ours


def test_scaling_that_is_added_to_a_newer_file_keeps_its_base(saved: Checkpoints) -> None:
    """transformers 5.24 takes `rope_scaling` in place of `rope_parameters`, and the base falls back to 10,000."""
    config = hf_config(saved, "qwen3") | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    mixer = family_of(config).read_hf(config | {"rope_scaling": scaling}).layers[0].mixer
    assert isinstance(mixer, Attention.Config) and mixer.rope is not None
    assert (mixer.rope.scaling, mixer.rope.base, mixer.rope.original_context) == ("yarn", 1e6, 64)


def test_windows_that_are_switched_off_are_no_windows(saved: Checkpoints) -> None:
    config = hf_config(saved, "qwen2") | {"layer_types": None}
    family = family_of(config)
    plain = family.read_hf(config | {"sliding_window": None, "use_sliding_window": False})
    assert family.read_hf(config | {"sliding_window": 4, "use_sliding_window": False}) == plain
    assert family.read_hf(config | {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}) == plain
    assert family.read_hf(config | {"sliding_window": None, "use_sliding_window": True}) == plain


def test_positions_that_are_not_rotated_need_no_rotary_keys(saved: Checkpoints) -> None:
    config = hf_config(saved, "hybrid-nope")
    family = family_of(config)
    assert HYBRID["position_embedding_type"] is None
    plain = family.read_hf(config)
    assert family.read_hf(config | {"rope_scaling": {"rope_type": "longrope"}}) == plain
