"""One layer of a model: its two parts, the norms around them, and how they are added to the residual stream.

With f a part (the mixer, then the channel) and s its scale, `Wiring.norms` is one of

    pre         h <- h + s f(norm(h))             nearly every model since 2020
    post        h <- norm(h + s f(h))             the transformer of 2017
    output      h <- h + s norm(f(h))             OLMo 2
    sandwich    h <- h + s norm(f(norm(h)))       Gemma 2 and 3

and parallel parts read the same rows: h <- h + s mixer(norm(h)) + s' channel(norm(h)), with one norm for both (GPT-J,
Falcon, Cohere) or two (GPT-NeoX). Two mixers side by side are one mixer: stretto/mixers/parallel.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stretto.core.channel import Channel, ChannelConfig
from stretto.core.errors import UserError
from stretto.core.mixer import Mixer, MixerConfig
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.core.state import StateSpec, prefixed, states_of
from stretto.kernels.layernorm import layer_norm
from stretto.kernels.native.tape import part
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rowwise import residual_add, take_rows
from stretto.models.adapter import Adapter

NormKind = Literal["rms", "rms_plus_one", "layer", "layer_no_bias"]
"""x / rms(x) * w, or * (1 + w) (Gemma); LayerNorm with weight and bias, or with a weight alone (Cohere)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wiring:
    """See the module docstring. mixer_scale, channel_scale: of what a part adds, besides the model's own multiplier."""

    norms: Literal["pre", "post", "output", "sandwich"] = "pre"
    parallel: Literal["one_norm", "two_norms"] | None = None
    mixer_scale: float = 1.0
    channel_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.parallel is not None and self.norms != "pre":
            raise UserError(f"parallel parts with {self.norms} norms", why="both read what a norm before them gives")

    @property
    def reads_normed(self) -> bool:
        """Whether a norm stands before a part."""
        return self.norms in ("pre", "sandwich")

    @property
    def adds_normed(self) -> bool:
        """Whether a norm stands behind it."""
        return self.norms != "pre"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer: a mixer, a channel, or both.

    shared: layers of one name have the same weights (and must be equal); each keeps a state of its own. adapter: what
    every one of them adds to some matrices.
    """

    mixer: MixerConfig | None = None
    channel: ChannelConfig | None = None
    wiring: Wiring = Wiring()
    shared: str | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        if self.mixer is None and self.channel is None:
            raise UserError("a layer without a part", try_="a mixer, a channel, or both")
        if self.wiring.parallel is not None and (self.mixer is None or self.channel is None):
            raise UserError("parallel parts, and only one of them", try_="a mixer and a channel")


class Norm(nn.Module):
    """The norm of a model, over rows [T, D]."""

    def __init__(self, kind: NormKind, d_model: int, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.zeros(d_model) if kind == "rms_plus_one" else torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if kind == "layer" else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        if self.kind in ("layer", "layer_no_bias"):
            return layer_norm(x_TD, self.weight, self.bias, eps=self.eps)
        if self.kind == "rms_plus_one":
            return rms_norm(x_TD, 1.0 + self.weight.to(torch.promote_types(x_TD.dtype, torch.float32)), eps=self.eps)
        return rms_norm(x_TD, self.weight, eps=self.eps)


class Block(nn.Module):
    """The weights of one layer, or of several that share them.

    norm: makes one. multiplier: the model's, of everything that is added to the residual stream.
    """

    def __init__(self, layer: Layer, norm: Callable[[], Norm], multiplier: float) -> None:
        super().__init__()
        wiring = self.wiring = layer.wiring
        self.mixer_scale, self.channel_scale = multiplier * wiring.mixer_scale, multiplier * wiring.channel_scale
        self.mixer: Mixer | None = None
        self.channel: Channel | None = None
        self.mixer_norm: Norm | None = None
        self.channel_norm: Norm | None = None
        self.mixer_post_norm: Norm | None = None
        self.channel_post_norm: Norm | None = None
        if layer.mixer is not None:
            self.mixer_norm = norm() if wiring.reads_normed else None
            self.mixer = layer.mixer.build()
            self.mixer_post_norm = norm() if wiring.adds_normed else None
        if layer.channel is not None:
            self.channel = layer.channel.build()
            self.channel_norm = norm() if wiring.reads_normed and wiring.parallel != "one_norm" else None
            self.channel_post_norm = norm() if wiring.adds_normed else None
        self.is_adapted = layer.adapter is not None

    @property
    def parts(self) -> list[Mixer | Channel]:
        """What it has of the two."""
        return [one for one in (self.mixer, self.channel) if one is not None]

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """What one sequence carries through it."""
        of_mixer = () if self.mixer is None else self.mixer.state_specs
        return of_mixer if self.channel is None else (*of_mixer, *prefixed(self.channel.state_specs, "channel"))

    def forward(self, h_TD: Tensor, plan: StepPlan, index: int, *, use: int = 0, is_last: bool = False) -> Tensor:
        """[T, D] -> [T, D]; of the last layer only [R, D], the rows that the head needs.

        index: of the layer; use: how many layers before it have this block.
        """
        entry_TD = x_TD = h_TD
        if self.mixer is not None:
            x_TD = h_TD if self.mixer_norm is None else self.mixer_norm(h_TD)
            y_TD = part(f"blocks.{index}.mixer", x_TD, plan, lambda x, plan: self._mix(x, plan, index, use))
            h_TD = self._added(h_TD, y_TD, self.mixer_post_norm, self.mixer_scale)
        given_TD = {None: h_TD, "one_norm": x_TD, "two_norms": entry_TD}[self.wiring.parallel]
        # Rows that nobody needs go before the channel, unless its state has to see them.
        cuts_first = is_last and not (self.channel is not None and self.channel.state_specs)
        if cuts_first:
            kept_TD = take_rows(h_TD, plan.out_rows)
            given_TD = kept_TD if given_TD is h_TD else take_rows(given_TD, plan.out_rows)
            h_TD = kept_TD
        if self.channel is not None:
            x_TD = given_TD if self.channel_norm is None else self.channel_norm(given_TD)
            name = f"blocks.{index}.channel"
            y_TD = part(name, x_TD, plan, lambda x, plan: self._think(x, plan, index, use, wanted_only=cuts_first))
            h_TD = self._added(h_TD, y_TD, self.channel_post_norm, self.channel_scale)
        return take_rows(h_TD, plan.out_rows) if is_last and not cuts_first else h_TD

    def _added(self, h_TD: Tensor, y_TD: Tensor, norm: Norm | None, scale: float) -> Tensor:
        if norm is None:
            return residual_add(h_TD, y_TD, scale=scale)
        if self.wiring.norms == "post":
            return norm(residual_add(h_TD, y_TD, scale=scale))  # type: ignore[no-any-return]
        return residual_add(h_TD, norm(y_TD), scale=scale)

    def _mix(self, x_TD: Tensor, plan: StepPlan, index: int, use: int) -> Tensor:
        assert self.mixer is not None
        cache, notes = None if plan.caches is None else plan.caches[index], _notes(self.mixer, plan, index, "mixer")
        return self.mixer(x_TD, self._seqs(plan.seqs, use), cache, **notes)  # type: ignore[no-any-return]

    def _think(self, x_TD: Tensor, plan: StepPlan, index: int, use: int, *, wanted_only: bool) -> Tensor:
        assert self.channel is not None
        options = _notes(self.channel, plan, index, "channel")
        if self.channel.state_specs:
            options["cache"] = states_of(None if plan.caches is None else plan.caches[index], "channel")
        seqs = self._seqs(plan.out_seqs if wanted_only else plan.seqs, use)
        return self.channel(x_TD, seqs, **options)  # type: ignore[no-any-return]

    def _seqs(self, seqs: Seqs, use: int) -> Seqs:
        return seqs.tagged("use", use) if self.is_adapted else seqs


def _notes(one: Mixer | Channel, plan: StepPlan, index: int, name: str) -> dict[str, Any]:
    """Where a part that has something to say is to write it, if anybody reads it."""
    wanted = one.notes and plan.notes is not None
    return {"notes": plan.notes.setdefault(f"blocks.{index}.{name}", {})} if wanted else {}  # type: ignore[union-attr]
