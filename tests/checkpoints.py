"""Random checkpoints of every family, made by transformers, with its logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.convert.model_file import ModelFile, families
from stretto.core.plan import StepPlan
from stretto.models.family import TINY
from stretto.models.lm import LM
from stretto.models.parts.outer import TINY_MULTIPLIERS

IDS = [7, 60, 3, 3, 41, 12, 5, 33, 9, 28, 50, 1, 17, 62, 8, 44, 20, 2, 36, 11, 55]
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny(family: str) -> dict[str, Any]:
    """The config of a family's small model, for transformers."""
    found = next(f for f in families() if f.name == family)
    return {"model_type": next(iter(found.hf.values())), **TOKENS, **TINY, **found.tiny}


BASE: dict[str, Any] = {**TOKENS, **TINY}
SCALED, HYBRID, MAMBA, QWEN35 = TINY_MULTIPLIERS, tiny("granite_hybrid"), tiny("mamba2"), tiny("qwen3_5")


def rope(kind: str, **values: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SPECS: dict[str, dict[str, Any]] = {
    "llama": BASE | {"model_type": "llama"} | rope("default"),
    "llama-tied-biased": BASE
    | {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "llama-llama3": BASE | {"model_type": "llama"} | rope("llama3", **LLAMA3),
    "llama-linear": BASE | {"model_type": "llama"} | rope("linear", factor=4.0),
    "llama-yarn": BASE | {"model_type": "llama"} | rope("yarn", factor=4.0, original_max_position_embeddings=32),
    "mistral": BASE | {"model_type": "mistral", "sliding_window": 5},
    "mistral-full": BASE | {"model_type": "mistral", "sliding_window": None},
    "qwen2": BASE | {"model_type": "qwen2", "sliding_window": 4},
    "qwen2-llama3": BASE | {"model_type": "qwen2"} | rope("llama3", **LLAMA3),
    "qwen3": BASE | {"model_type": "qwen3", "head_dim": 8},
    "granite": BASE | SCALED | {"model_type": "granite"},
    "mamba2": MAMBA,
    "mamba2-limited": MAMBA | {"n_groups": 1, "use_bias": True, "use_conv_bias": False, "time_step_limit": [0.05, 0.6]},
    "hybrid-nope": HYBRID,
    "hybrid-rope": HYBRID
    | {"position_embedding_type": "rope", "mamba_n_groups": 2, "attention_bias": True, "mamba_proj_bias": True},
    "hybrid-attention": HYBRID | {"position_embedding_type": "rope", "layer_types": ["full_attention"] * 4},
    "qwen3_5": QWEN35,
    "qwen3_5-irregular": QWEN35
    | {"layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"]}
    | {"attention_bias": True, "linear_num_value_heads": 6, "tie_word_embeddings": True},
}


class Checkpoints:
    """Name of `SPECS` -> (directory, transformers' logits [21, 64]), made when first asked for, below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: dict[str, tuple[Path, torch.Tensor]] = {}

    def __call__(self, name: str, spec: Mapping[str, Any] | None = None) -> tuple[Path, torch.Tensor]:
        """spec: of a name that is not in `SPECS`."""
        if name not in self._done:
            self._done[name] = self._make(name, dict(SPECS[name] if spec is None else spec))
        return self._done[name]

    def _make(self, name: str, spec: dict[str, Any]) -> tuple[Path, torch.Tensor]:
        torch.manual_seed(len(name))
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(spec.pop("model_type"), **spec)).eval()
        with torch.no_grad():
            for p in theirs.parameters():  # at their initial size, weights hide what is left out
                p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(3)
            theirs.save_pretrained(self._root / name)
            return self._root / name, theirs(torch.tensor([IDS]), use_cache=False).logits[0]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference at most `tolerance` of the largest value."""
    assert got.shape == want.shape
    error, scale = float((got - want).abs().max()), float(want.abs().max())
    assert scale > 0.1 and error <= tolerance * scale, f"error {error:.2e} of {scale:.2e}"


def whole(lm: LM) -> torch.Tensor:
    """Logits of `IDS` in one call."""
    return lm(StepPlan.of([IDS]))  # type: ignore[no-any-return]


def same_tensors(model: ModelFile, first: dict[str, torch.Tensor], last: dict[str, torch.Tensor]) -> None:
    """The tensors of a checkpoint that became a GGUF file and a checkpoint again: bit-identical, but for fp32 numbers
    that GGUF stores in another parametrisation, by the family's tables: these within 2 ulp of what is stored."""
    stored = model.family.gguf_names(model.config)
    maps = {theirs.name: (theirs.load, stored[ours].save) for ours, theirs in model.names.items()}
    assert last.keys() == first.keys() <= maps.keys()
    for name, value in first.items():
        assert last[name].dtype == value.dtype, name
        there = [_stored_as(x.double(), *maps[name]).float().numpy() for x in (value, last[name])]
        if value.dtype != torch.float32 or maps[name] == (None, None):
            assert torch.equal(last[name], value), name
        else:
            assert (np.abs(there[0] - there[1]) <= 2 * np.spacing(np.abs(there[0]))).all(), name


def _stored_as(values: torch.Tensor, load: Any, save: Any) -> torch.Tensor:
    values = values if load is None else load(values)
    return values if save is None else save(values)
