"""Noise, processed laws and picks: how a token is chosen from logits. See reference.py for the definitions."""

from stretto.kernels.sampling.laws import (
    Law,
    Logprobs,
    Refusals,
    RowSampling,
    logprobs,
    picks,
    probs,
    process,
    refusals,
    score_picks,
    score_probs,
    try_picks,
    try_probs,
)
from stretto.kernels.sampling.noise import Purpose, draw, gumbel, uniform

__all__ = [
    "Law", "Logprobs", "Purpose", "Refusals", "RowSampling", "draw", "gumbel", "logprobs", "picks", "probs", "process",
    "refusals", "score_picks", "score_probs", "try_picks", "try_probs", "uniform",
]  # fmt: skip
