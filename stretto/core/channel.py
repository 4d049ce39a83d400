"""The `Channel` socket: what a layer does with every token on its own."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from stretto.core.seqs import Seqs


class Channel(nn.Module, ABC):
    """Token-wise part of a layer: gated MLP, mixture of experts, structured matrices.

    Laws (tests/contracts/test_channel.py): a row's result does not depend on the other rows (or the card says
    `approximate`); gradients equal the fp64 reference; any packing of the same rows gives the same values.
    """

    d_model: int

    @abstractmethod
    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        """`x_TD` [T, D] packed rows -> [T, D]. `seqs` says which rows are decode rows (see kernels/linear)."""
