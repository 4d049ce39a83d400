"""Adapters for tests: random ones for a checkpoint, as PEFT writes them, and the same merged into its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

Terms = Mapping[str, tuple[Tensor, Tensor]]
"""Path of a module -> A [r, in] and B [out, r]."""
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "bias": "none",
    "target_modules": "all-linear", "use_rslora": False, "use_dora": False, "modules_to_save": None,
    "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
    "fan_in_fan_out": False, "inference_mode": True, "base_model_name_or_path": "toy", "loftq_config": {},
}  # fmt: skip


def linears(theirs: nn.Module) -> dict[str, nn.Linear]:
    """What "all-linear" means: every linear module but the head."""
    return {
        path: module
        for path, module in theirs.named_modules()
        if isinstance(module, nn.Linear) and not path.endswith("lm_head")
    }


def random_terms(shapes: Mapping[str, tuple[int, int]], rank: int = 3, seed: int = 0, size: float = 0.2) -> Terms:
    """shapes: [out, in] by path."""
    random = torch.Generator().manual_seed(seed)
    return {
        path: (torch.randn(rank, d_in, generator=random) * size, torch.randn(d_out, rank, generator=random) * size)
        for path, (d_out, d_in) in shapes.items()
    }


def numbers(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A random tensor for each name, fp32, the same ones always."""
    random = torch.Generator().manual_seed(3)
    return {name: torch.randn(*shapes[name], generator=random) * 0.2 for name in sorted(shapes)}


def write_peft(folder: Path, terms: Terms, more: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
    """The folder, with other values in its config (`...`: without this key) and more tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {key: value for key, value in {**CONFIG, **config}.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(text))
    tensors = {
        f"base_model.model.{path}.lora_{side}.weight": value.contiguous()
        for path, (a, b) in terms.items()
        for side, value in (("A", a), ("B", b))
    }
    save_file({**tensors, **(more or {})}, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def theirs_of(checkpoint: Path) -> Any:
    """The model by transformers, in fp64."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()


@torch.no_grad()
def merged_logits(theirs: Any, terms: Terms, scale: float | Mapping[str, float], ids: list[int]) -> Tensor:
    """[T, vocabulary] of the model with the adapter in its weights; they are left as they were."""
    modules = linears(theirs)
    deltas = {
        path: (scale if isinstance(scale, float) else scale[path]) * b.double() @ a.double()
        for path, (a, b) in terms.items()
    }
    for path, delta in deltas.items():
        modules[path].weight += delta
    logits: Tensor = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    for path, delta in deltas.items():
        modules[path].weight -= delta
    return logits
