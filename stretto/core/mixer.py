"""The `Mixer` socket: how a layer moves information between the tokens of a sequence."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec


class Mixer(nn.Module, ABC):
    """One forward path for training, prefill, decode and verification: what differs is `seqs` and `cache`.

    `cache=None` is training: zero entry state, autograd, nothing written. Otherwise `cache[name]` is the state that
    `state_specs` declares under that name, and the call leaves in it the state after the *definite* rows of every
    sequence; rows that `seqs.num_draft` calls provisional see their ancestors but are kept only by `commit`.

    `seqs.tag(name)` says whose rows they are (adapter, tenant), where that matters.

    A mixer is projections, gates and equations. State is read, written and replayed by the kernels it calls
    (`glr`, `short_conv`, `attention`, ...), so a filler contains no decode loop, no rollback and no cache layout.

    Laws (tests/contracts/test_mixer.py), in fp64 over every card:
    - whole = any split into calls = token by token, in chunked and in step form, values and end states;
    - packed sequences = each one alone, values and gradients, down to length 1;
    - causality: changing row t leaves rows < t bit-identical (Can.BITWISE_CAUSAL) or within 1e-10;
    - a draft tree's row = the row of the plain sequence that its path spells;
    - after commit of any root path the state = the state of having read that path, whatever was rejected;
    - snapshot, run on, restore = never ran on; declared state bytes = allocated bytes; gradients pass gradcheck.
    """

    d_model: int
    notes: ClassVar[tuple[str, ...]] = ()
    """What it says of a call besides its rows. If there is any, `forward` takes `notes: Notes | None = None`."""
    wide_params: ClassVar[tuple[str, ...]] = ()
    """Parameters that stay fp32 when the model runs in a narrower dtype (decays, time steps)."""

    @property
    def can(self) -> Can:
        """What the engine may ask of it; the card says the same. Most mixers say it once, by `can = ...` in the class.

        What is not claimed is refused by name or done without."""
        return Can(0)

    @property
    @abstractmethod
    def state_specs(self) -> tuple[StateSpec, ...]:
        """What one sequence must carry through this layer."""

    @property
    def pair_flops(self) -> int:
        """Operations of a row for every earlier token that it sees: 0 if its work does not grow with the text."""
        return 0

    @abstractmethod
    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """`x_TD` [T, D] packed rows -> [T, D]."""


class MixerConfig(Protocol):
    """Config of any mixer: a frozen dataclass."""

    def build(self) -> Mixer: ...
