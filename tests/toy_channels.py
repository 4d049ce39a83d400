"""Channels that note what they did, or ask whose rows they compute: what no filler does yet."""

from dataclasses import dataclass

import torch
from torch import Tensor
from toy import WIDTH

from stretto.core.channel import Channel
from stretto.core.seqs import Seqs
from stretto.core.state import Notes
from stretto.kernels.linear import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """Config of a toy mixture: every row goes to the likelier of its experts, one matrix each."""

    d_model: int = WIDTH
    num_experts: int = 3

    def build(self) -> Channel:
        return Router(self)


class Router(Channel):
    notes = ("router_loss", "experts")

    def __init__(self, config: Routed) -> None:
        super().__init__()
        self.d_model, self.config = config.d_model, config
        self.gate = Linear(config.d_model, {"gate": config.num_experts})
        self.experts = Linear(config.d_model, {str(e): config.d_model for e in range(config.num_experts)})

    def forward(self, x_TD: Tensor, seqs: Seqs, notes: Notes | None = None) -> Tensor:
        p_TE = self.gate(x_TD, seqs).softmax(-1)
        best_T = p_TE.argmax(-1)
        if notes is not None:
            share_E = torch.nn.functional.one_hot(best_T, p_TE.shape[1]).to(p_TE.dtype).mean(0)
            notes["router_loss"] = self.config.num_experts * (share_E * p_TE.mean(0)).sum()
            notes["experts"] = best_T
        y_TED = torch.stack(self.experts.split(self.experts(x_TD, seqs)), 1)
        rows = torch.arange(len(x_TD))
        return y_TED[rows, best_T] * p_TE[rows, best_T, None]  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenants:
    """Config of a toy: a matrix for everybody and a low-rank term for each adapter."""

    d_model: int = WIDTH
    num_adapters: int = 3

    def build(self) -> Channel:
        return PerTenant(self)


class PerTenant(Channel):
    def __init__(self, config: Tenants) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.base = Linear(config.d_model, {"base": config.d_model})
        self.a = torch.nn.Parameter(torch.zeros(config.num_adapters, 2, config.d_model))
        self.b = torch.nn.Parameter(torch.zeros(config.num_adapters, config.d_model, 2))

    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        y_TD: Tensor = self.base(x_TD, seqs)
        adapter_T = seqs.tag("adapter")
        if adapter_T is None:
            return y_TD
        if isinstance(adapter_T, int):
            return y_TD + x_TD @ self.a[adapter_T].T @ self.b[adapter_T].T
        return y_TD + torch.einsum("trd,td,tor->to", self.a[adapter_T], x_TD, self.b[adapter_T])
