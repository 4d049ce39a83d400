"""Laws and draws through torch, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stretto.core.errors import UserError
from stretto.kernels.native.library import Team
from stretto.kernels.sampling.laws import Law, likeliest, process
from stretto.kernels.sampling.noise import gumbel, gumbel_of_rows
from stretto.kernels.sampling.reference import Purpose
from stretto.kernels.sampling.rows import Logprobs, Refusals, RowSampling


def why_not(x: Tensor, threads: Team | None) -> str | None:
    """It always can."""
    return None


def choose(
    xs: Sequence[Tensor], rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team | None
) -> tuple[list[int], Refusals]:
    """Gumbel-max over the survivors of every row [W]."""
    chosen, refused = list(argmax), Refusals()
    few: list[int] = []
    laws: list[Tensor] = []
    survivors: list[Tensor] = []
    for r, (x, row) in enumerate(zip(xs, rows, strict=True)):
        try:
            law = process(x, row)
        except UserError as why:
            refused[r] = why
            continue
        if law.ids is None or 4 * len(law.ids) > len(x):  # a block of noise serves four tokens
            noise = gumbel(row.noise, row.position, Purpose.TOKEN, range(len(x))).to(x.device)
            at = (law.logits + (noise if law.ids is None else noise[law.ids])).argmax()
            chosen[r] = int(at if law.ids is None else law.ids[at])
        elif len(law.ids) == 1:
            chosen[r] = int(law.ids[0])
        else:
            few.append(r)
            laws.append(law.logits)
            survivors.append(law.ids)
    if few:
        noises, positions = [rows[r].noise for r in few], [rows[r].position for r in few]
        drawn = gumbel_of_rows(noises, positions, Purpose.TOKEN, survivors)
        for r, law_logits, ids, noise in zip(few, laws, survivors, drawn, strict=True):
            chosen[r] = int(ids[(law_logits + noise.to(xs[0].device)).argmax()])
    return chosen, refused


def probs(x: Tensor, rows: Sequence[RowSampling]) -> tuple[Tensor, Refusals]:
    """[R, W]: the law of every row; token 0 where there is none."""
    laws, refused = list[Tensor](), Refusals()
    for r, row in enumerate(rows):
        try:
            law = process(x[r], row)
        except UserError as why:
            refused[r] = why
            law = Law(x.new_zeros(1), torch.zeros(1, dtype=torch.int64, device=x.device))
        laws.append(law.probs(x.shape[1]))
    return torch.stack(laws) if laws else x, refused


def logprobs(x: Tensor, chosen: Tensor, k: int) -> Logprobs:
    """Of the raw logits [R, W]; k <= W."""
    x = x.log_softmax(dim=1)
    ids = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    for r, row in enumerate(x if k else ()):
        found = likeliest(row, k)
        if len(found) < k:  # fewer than k tokens have a probability
            found = torch.arange(len(row), device=x.device)
        ids[r] = found[row[found].sort(descending=True, stable=True).indices[:k]]
    return Logprobs(x.gather(1, chosen[:, None]).squeeze(1), ids, x.gather(1, ids))
