"""Noise, processed laws and picks: how a token is chosen from logits. See reference.py for the definitions."""

from stretto.kernels.sampling.laws import Law, Logprobs, RowSampling, greedy, logprobs, picks, probs, process
from stretto.kernels.sampling.noise import Purpose, draw, gumbel, uniform

__all__ = [
    "Law", "Logprobs", "Purpose", "RowSampling", "draw", "greedy", "gumbel", "logprobs", "picks", "probs", "process",
    "uniform",
]  # fmt: skip
