"""Adapters of a block that several layers share: every layer adds low-rank terms of its own to some of its matrices.

    y = x W^T + scale * x A_u^T B_u^T        u: which use of the block this is, counted from 0

Papers: LoRA, arXiv 2106.09685; shared blocks with an adapter for each use: Zamba2, 2411.15242.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear
from stretto.kernels.rowwise import residual_add


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """rank: rows of A. matrices: paths of the `Linear`s of a block that get terms (`channel.gate_up`, `mixer.qkv`)."""

    rank: int
    matrices: tuple[str, ...]
    scale: float = 1.0

    def attach(self, block: nn.Module, num_uses: int) -> None:
        """Give the matrices of `block` one adapter for each use."""
        for path in self.matrices:
            linear = dict(block.named_modules()).get(path)
            if not isinstance(linear, Linear):
                names = ", ".join(name for name, module in block.named_modules() if isinstance(module, Linear))
                raise UserError(f"there is no matrix {path!r} to adapt", why=f"the block has {names}")
            linear.adapters = nn.ModuleList(LowRank(self, linear) for _ in range(num_uses))


class LowRank(nn.Module):
    """The term of one matrix and one use; B starts at zero, so it adds nothing at first."""

    def __init__(self, adapter: Adapter, linear: Linear) -> None:
        super().__init__()
        self.scale = adapter.scale
        self.down = Linear(linear.d_in, {"down": adapter.rank})
        self.up = Linear(adapter.rank, {"up": linear.d_out})
        nn.init.zeros_(self.up.weight)

    def forward(self, x_TD: Tensor, y_TD: Tensor, seqs: Seqs) -> Tensor:
        """y + scale * x A^T B^T, [T, d_out]."""
        return residual_add(y_TD, self.up(self.down(x_TD, seqs), seqs), scale=self.scale)
