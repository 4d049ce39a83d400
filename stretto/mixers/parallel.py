"""Mixers side by side: attention beside a state-space model in one layer, their outputs scaled and summed.

    y = sum_i out_scale_i * mixer_i(in_scale_i * x)

The whole is a mixer: its state is that of all branches, under names that begin with theirs. Paper: Falcon-H1, arXiv
2507.22448. Hymba (2411.13676) differs from it: its branches share their projections and are normalised before the sum.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from stretto.core.card import MIXERS, Can, Card
from stretto.core.errors import UserError
from stretto.core.mixer import Mixer, MixerConfig
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, prefixed, states_of
from stretto.kernels.rowwise import residual_add


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One of the mixers. name: of its weights and states (`attention`, `ssm`)."""

    name: str
    mixer: MixerConfig
    in_scale: float = 1.0
    out_scale: float = 1.0


class Parallel(Mixer):
    """See the module docstring."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        d_model: int
        branches: tuple[Branch, ...]

        def __post_init__(self) -> None:
            names = [branch.name for branch in self.branches]
            if not names or len(set(names)) < len(names):
                raise UserError(
                    f"parallel: branches {names}", why="every mixer needs a name of its own, and one a mixer"
                )

        def build(self) -> "Parallel":
            return Parallel(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.d_model = config, config.d_model
        self.branches = nn.ModuleDict({branch.name: branch.mixer.build() for branch in config.branches})

    @property
    def mixers(self) -> list[tuple[Branch, Mixer]]:
        """The branches in order."""
        return [(branch, self.branches[branch.name]) for branch in self.config.branches]  # type: ignore[misc]

    @property
    def can(self) -> Can:
        """What all of them can."""
        (_, first), *others = self.mixers
        can = first.can
        for _, mixer in others:
            can &= mixer.can
        return can

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        return tuple(spec for branch, mixer in self.mixers for spec in prefixed(mixer.state_specs, branch.name))

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        total_TD: Tensor | None = None
        for branch, mixer in self.mixers:
            own_TD = x_TD if branch.in_scale == 1.0 else x_TD * branch.in_scale
            y_TD = mixer(own_TD, seqs, states_of(cache, branch.name))
            if total_TD is None:
                total_TD = y_TD if branch.out_scale == 1.0 else y_TD * branch.out_scale
            else:
                total_TD = residual_add(total_TD, y_TD, scale=branch.out_scale)
        assert total_TD is not None
        return total_TD


def _tiny(name: str, card: str, **scales: float) -> Branch:
    known = MIXERS.card(card)
    return Branch(name=name, mixer=known.make(**known.tiny), **scales)


_TINY = Parallel.Config(
    d_model=16,
    branches=(
        _tiny("attention", "attention", in_scale=0.8, out_scale=1.2),
        _tiny("ssm", "mamba2", out_scale=0.7),
    ),
)

CARD = Card(
    name="parallel",
    make=Parallel.Config,
    tiny={"d_model": _TINY.d_model, "branches": _TINY.branches},
    idea="mixers side by side, such as attention beside Mamba-2, their outputs scaled and summed",
    paper="2507.22448",
    can=_TINY.build().can,
    state="that of all branches",
    cost="that of all branches",
)
