"""Retention: linear attention whose heads forget at fixed rates, each half as fast as the one before it.

    q = rope(x W_q)    k = rope(x W_k)    v, z = x W_v, x W_z        gamma_h = 1 - 2^(-5 - h)
    S_t = gamma_h S_{t-1} + k_t v_t^T                                S: (K, V) per head, fp32 or wider
    y_t = S_t^T q_t / sqrt(K)                                        out = (norm(y) * silu(z)) W_out      norm per head

Paper: RetNet, arXiv 2307.08621. Differs from it: norm is RMSNorm with a weight, as in the models that were trained, and
the rotary angles are those of arXiv 2104.09864.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.core.card import Card
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache
from stretto.kernels.glr import glr
from stretto.kernels.linear import Linear
from stretto.kernels.rope import Rope, apply_rope
from stretto.mixers import _shared as parts


class Retention(parts.Recurrent):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """head_k_dim, head_v_dim: of a head; the paper has d_model / num_heads and twice that."""

        d_model: int
        num_heads: int
        head_k_dim: int
        head_v_dim: int
        eps: float = 1e-5  # of the output norm

        def build(self) -> "Retention":
            return Retention(self)

    def __init__(self, config: Config) -> None:
        c, keys, values = config, config.num_heads * config.head_k_dim, config.num_heads * config.head_v_dim
        super().__init__(c.d_model, values, memory=(c.num_heads, c.head_k_dim, c.head_v_dim), norm=c.head_v_dim)
        self.config, self.rope = c, Rope(dim=c.head_k_dim)
        self.in_proj = Linear(c.d_model, {"q": keys, "k": keys, "v": values, "z": values})

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        c = self.config
        q, k, v, z_TF = self.in_proj.split(self.in_proj(x_TD, seqs))
        q_THK, k_THK, v_THV = (part.unflatten(1, (c.num_heads, -1)) for part in (q, k, v))
        v_THV = parts.widen(v_THV)
        powers = torch.arange(5, 5 + c.num_heads, device=x_TD.device)
        g_H = torch.log1p(-torch.exp2(-powers.to(v_THV.dtype)))
        y_THV = glr(
            parts.widen(apply_rope(q_THK, self.rope, seqs)),
            parts.widen(apply_rope(k_THK, self.rope, seqs)),
            v_THV,
            g=g_H.expand(len(x_TD), -1),
            seqs=seqs,
            state=self.memory(cache),
            scale=c.head_k_dim**-0.5,
        )
        return self.gated_output(y_THV, z_TF, seqs, eps=c.eps)


CARD = Card(
    name="retention",
    make=Retention.Config,
    idea="linear attention whose heads forget at fixed rates",
    paper="2307.08621",
    can=Retention.can,
    tiny={"d_model": 16, "num_heads": 3, "head_k_dim": 4, "head_v_dim": 6},
    state="H*K*V fp32",
    cost="O(T H K V)",
)
