"""How config.json and GGUF files spell a rotary embedding."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stretto.core.errors import ModelFileError
from stretto.kernels.rope import Rope
from stretto.models.family import Reader

_KINDS = ("default", "linear", "llama3", "yarn")


def hf_rope(read: Reader, head_dim: int) -> Rope:
    """The rotary embedding of a config.json, in the old spelling (`rope_theta`, `rope_scaling`) or the new one
    (`rope_parameters`)."""
    old, new = read.get("rope_scaling", {}), read.get("rope_parameters", {})
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(value, dict) or any(isinstance(v, dict) for v in value.values()):
            raise ModelFileError(
                f"{read.where}: {key} = {value!r} is not supported", why="one set of values for all layers is expected"
            )
    outside = {k: read.config[k] for k in ("rope_theta", "partial_rotary_factor") if read.config.get(k) is not None}
    spec = Reader({**outside, **old, **new}, f"{read.where}, rotary embedding")
    spec.expect("partial_rotary_factor", 1.0)  # no family here rotates a part: others read this key, these ignore it
    dim = _even(read, head_dim)
    base, kind = spec.number("rope_theta", 10000.0), spec.get("rope_type", spec.get("type", "default"))
    if kind == "default":
        return Rope(dim=dim, base=base)
    if kind == "linear":
        return Rope(dim=dim, base=base, scaling="linear", factor=spec.number("factor"))
    if kind == "llama3":
        return Rope(
            dim=dim,
            base=base,
            scaling="llama3",
            factor=spec.number("factor"),
            original_context=spec.count("original_max_position_embeddings"),
            low_freq_factor=spec.number("low_freq_factor"),
            high_freq_factor=spec.number("high_freq_factor"),
        )
    if kind == "yarn":
        spec.expect("truncate", True)
        spec.expect("mscale", 0)
        spec.expect("mscale_all_dim", 0)
        context = read.get("max_position_embeddings", None)
        original = spec.count("original_max_position_embeddings", context)
        return Rope(
            dim=dim,
            base=base,
            scaling="yarn",
            factor=spec.number("factor", context / original if context else None),
            original_context=original,
            beta_fast=spec.number("beta_fast", 32.0),
            beta_slow=spec.number("beta_slow", 1.0),
            attention_factor=spec.number("attention_factor")
            if spec.get("attention_factor", None) is not None
            else None,
        )
    raise ModelFileError(f"{read.where}: rope scaling {kind!r} is not supported", why=f"supported: {', '.join(_KINDS)}")


def _even(read: Reader, head_dim: int) -> int:
    if head_dim % 2:
        raise ModelFileError(f"{read.where}: a head of {head_dim} entries cannot be rotated in pairs")
    return head_dim


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the spelling that every reader knows."""
    rope = _named(rope)
    written: dict[str, Any] = {"rope_theta": rope.base, "rope_scaling": None}
    if rope.scaling == "default":
        return written
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling != "linear":
        scaling["original_max_position_embeddings"] = rope.original_context
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    return written | {"rope_scaling": scaling}


def _named(rope: Rope) -> Rope:
    """Divisors as the llama3 rule that made them."""
    if rope.scaling != "divisors":
        return rope
    # Every published Llama 3 was stretched from 8192 tokens with these bounds; only the factor differs.
    factor = max(rope.divisors)
    guess = Rope(dim=rope.dim, base=rope.base, scaling="llama3", factor=factor, original_context=8192)
    if torch.allclose(guess.frequencies(), rope.frequencies(), rtol=1e-5, atol=0):
        return guess
    raise ModelFileError(
        "the frequency divisors of this file (rope_freqs) have no config.json spelling",
        why=f"they are not those of Llama 3 for a factor of {factor:g}",
        try_="--to gguf",
    )


def gguf_rope(read: Reader, head_dim: int) -> Rope:
    """Rotary keys of a GGUF file; `read` has the architecture as its prefix."""
    read.expect("rope.scaling.type", "none", "linear", "yarn")
    read.expect("rope.scaling.attn_factor", 1.0)
    read.expect("rope.scaling.yarn_attn_factor", 1.0, -1.0)
    read.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    read.expect("rope.scaling.yarn_log_multiplier", 0.0)
    read.expect("rope.dimension_count", head_dim)
    dim, base = _even(read, head_dim), read.number("rope.freq_base", 10000.0)
    divisors = tuple(read.config.get("stretto.rope_divisors", ()))
    if divisors:
        if len(divisors) != dim // 2 or min(divisors) <= 0:
            raise ModelFileError(f"{read.where}: rope_freqs does not fit {dim} rotated entries")
        return Rope(dim=dim, base=base, scaling="divisors", divisors=divisors)
    kind, factor = read.get("rope.scaling.type", "none"), read.number("rope.scaling.factor", 1.0)
    if kind == "none" or factor == 1.0:
        return Rope(dim=dim, base=base)
    if kind == "linear":
        return Rope(dim=dim, base=base, scaling="linear", factor=factor)
    return Rope(
        dim=dim,
        base=base,
        scaling="yarn",
        factor=factor,
        original_context=read.count("rope.scaling.original_context_length"),
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def rope_to_gguf(rope: Rope) -> dict[str, Any]:
    """`rope.*` keys without the architecture; llama3 scaling goes into `rope_extra`."""
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.base)}
    if rope.scaling not in ("linear", "yarn"):
        return keys
    keys |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": float(rope.factor)}
    if rope.scaling == "yarn":
        if rope.magnitude != replace(rope, attention_factor=None).magnitude:
            raise ModelFileError(
                f"yarn with attention_factor = {rope.attention_factor} cannot be written to GGUF", try_="--to hf"
            )
        keys["rope.scaling.original_context_length"] = rope.original_context
        if (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
            keys |= {"rope.scaling.yarn_beta_fast": rope.beta_fast, "rope.scaling.yarn_beta_slow": rope.beta_slow}
    return keys


def rope_extra(rope: Rope | None) -> dict[str, Tensor]:
    """`rope_freqs.weight`: what the frequencies are divided by (llama3)."""
    if rope is None or rope.scaling not in ("llama3", "divisors"):
        return {}
    return {"rope_freqs.weight": Rope(dim=rope.dim, base=rope.base).frequencies() / rope.frequencies()}
