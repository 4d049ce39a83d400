"""The `Channel` socket: what a layer does with every token on its own."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.seqs import Seqs
from stretto.core.state import StateSpec


class Channel(nn.Module, ABC):
    """Token-wise part of a layer: gated MLP, mixture of experts, structured matrices.

    A channel may look back a little (the token shift of RWKV). What it then carries from call to call it declares as a
    mixer does, and `forward` takes `cache: LayerCache | None = None`, as that of a mixer.

    Laws (tests/contracts/test_channel.py): a row's result does not depend on the other rows (or the card says
    `approximate`); gradients equal the fp64 reference; any packing of the same rows gives the same values. Channels
    with a state obey the laws of mixers instead (tests/contracts/test_mixer.py).
    """

    d_model: int
    can: ClassVar[Can] = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE | Can.BITWISE_CAUSAL
    """What the engine may ask of it, as for mixers; the card says the same. A row by itself allows everything."""
    notes: ClassVar[tuple[str, ...]] = ()
    """What it says of a call besides its rows (router loss, chosen experts): if there is any, `forward` takes
    `notes: Notes | None = None` and fills it where it is given."""

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """What one sequence must carry through this part of a layer."""
        return ()

    @abstractmethod
    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        """`x_TD` [T, D] packed rows -> [T, D]. `seqs` says which rows are decode rows (see kernels/linear)."""


class ChannelConfig(Protocol):
    """Config of any channel: a frozen dataclass."""

    def build(self) -> Channel: ...
