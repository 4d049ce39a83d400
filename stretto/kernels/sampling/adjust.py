"""What bias, penalties and masks change in the logits of a row, as tensors.

Order: logit_bias, penalties, mask; what follows is in laws.py.
"""

import math
from collections import Counter

import torch
from torch import Tensor

from stretto.kernels.sampling.rows import RowSampling, check_ids, refusal


def wide(logits: Tensor) -> Tensor:
    """fp32, fp64 for fp64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def adjusted(x: Tensor, row: RowSampling) -> tuple[Tensor, int]:
    """One row [W] with bias, penalties and masks, and the lowest id of its largest logit. Raises as `process`."""
    x = adjust(x, row)
    best, at = x.max(dim=0)
    if not math.isfinite(top := best.item()):
        raise refusal(top)
    return x, int(at)


def adjust(x: Tensor, row: RowSampling) -> Tensor:
    """Bias, penalties and masks, on a copy of one row [W]."""
    s, x = row.sampling, x.clone()
    check_ids(s.logit_bias, len(x))
    check_ids(row.banned, len(x))
    if s.logit_bias:
        ids = torch.tensor(list(s.logit_bias), device=x.device)
        x[ids] += torch.tensor(list(s.logit_bias.values()), dtype=x.dtype, device=x.device)
    if s.has_penalties:
        counts = Counter(row.output)
        counts.update(row.path)
        repetition = 1.0 if s.repetition_penalty is None else s.repetition_penalty
        if repetition != 1.0 and (seen := {*row.prompt, *counts}):
            ids = torch.tensor(sorted(seen), device=x.device)
            held = x[ids]
            x[ids] = torch.where(held > 0, held / repetition, held * repetition)
        if counts and (s.frequency_penalty or s.presence_penalty):
            ids = torch.tensor(list(counts), device=x.device)
            times = torch.tensor(list(counts.values()), dtype=x.dtype, device=x.device)
            x[ids] -= s.frequency_penalty * times + s.presence_penalty
    if row.allowed is not None:
        x.masked_fill_(~unpacked(row.allowed, len(x)).to(x.device), -math.inf)
    if row.banned:
        x[list(row.banned)] = -math.inf
    return x


def unpacked(allowed: bytes, width: int) -> Tensor:
    """[width] bool of a mask (`RowSampling.allowed`)."""
    held = torch.frombuffer(bytearray(allowed.ljust(-(-width // 8), b"\0")), dtype=torch.uint8)
    return (held[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()[:width]
