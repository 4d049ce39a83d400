"""Random checkpoints of every family, made by transformers, with its logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.core.plan import StepPlan
from stretto.models.lm import LM

IDS = [7, 60, 3, 3, 41, 12, 5, 33, 9, 28, 50, 1, 17, 62, 8, 44, 20, 2, 36, 11, 55]
TOKENS: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BASE: dict[str, Any] = TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
SCALED = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 2.5,
    "attention_multiplier": 0.11,
}
HYBRID: dict[str, Any] = (
    BASE
    | SCALED
    | {
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 40,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "rms_norm_eps": 1e-5,
        "position_embedding_type": None,
    }
)
MAMBA: dict[str, Any] = TOKENS | {
    "model_type": "mamba2",
    "hidden_size": 32,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 16,
    "n_groups": 2,
    "expand": 2,
    "num_hidden_layers": 2,
    "chunk_size": 16,
    "tie_word_embeddings": False,
}


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
}
QWEN35: dict[str, Any] = BASE | {
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **rope("default", partial_rotary_factor=0.5),
}
SPECS |= {
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

    def __call__(self, name: str, changes: Mapping[str, Any] | None = None) -> tuple[Path, torch.Tensor]:
        """changes: to the spec of that name."""
        made = f"{name} {changes}" if changes else name
        if made not in self._done:
            folder = f"{name}-{len(self._done)}" if changes else name
            self._done[made] = self._make(folder, {**SPECS[name], **(changes or {})})
        return self._done[made]

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
