"""`LM`: the one model class. A language model is a list of declared layers, any mixer with any channel.

    h = embed(tokens) * embedding_multiplier
    h = h + residual_multiplier * mixer(norm(h))       per layer
    h = h + residual_multiplier * channel(norm(h))     if the layer has a channel
    logits = head(norm(h)) / logits_divider

Families (one small file each, beside this one) translate foreign configs into `LMConfig` and name the tensors.
"""

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.channel import Channel
from stretto.core.mixer import Mixer
from stretto.core.plan import StepPlan
from stretto.core.state import StateSpec, TensorCache
from stretto.kernels.linear import Linear
from stretto.kernels.native.tape import part
from stretto.kernels.rmsnorm import rms_norm
from stretto.kernels.rowwise import divided, residual_add, take_rows

_REFINED = 8  # likeliest tokens whose bf16 logits are computed again in fp32


class MixerConfig(Protocol):
    """Config of any mixer."""

    def build(self) -> Mixer: ...


class ChannelConfig(Protocol):
    """Config of any channel."""

    def build(self) -> Channel: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer: a mixer, and a channel unless the mixer is the whole layer (Mamba)."""

    mixer: MixerConfig
    channel: ChannelConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LMConfig:
    """A whole model. family: the file in models/ that made it. context: longest sequence it was made for."""

    family: str
    d_model: int
    vocab_size: int
    layers: tuple[Layer, ...]
    norm_eps: float
    context: int
    tie_embeddings: bool
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divider: float = 1.0

    def build(self) -> "LM":
        """Randomly initialised, fp32."""
        return LM(self)


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return rms_norm(x_TD, self.weight, eps=self.eps)


class Block(nn.Module):
    """One layer with its norms and residual branches."""

    def __init__(self, layer: Layer, config: LMConfig) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = layer.mixer.build()
        self.channel = layer.channel.build() if layer.channel is not None else None
        if self.channel is not None:
            self.channel_norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, h_TD: Tensor, plan: StepPlan, index: int, *, is_last: bool) -> Tensor:
        """[T, D] -> [T, D]; of the last block only [R, D], the rows that the head needs. index: of the layer."""

        def mix(x_TD: Tensor, plan: StepPlan) -> Tensor:
            return self.mixer(x_TD, plan.seqs, None if plan.caches is None else plan.caches[index])  # type: ignore[no-any-return]

        def think(x_TD: Tensor, plan: StepPlan) -> Tensor:
            assert self.channel is not None
            return self.channel(x_TD, plan.out_seqs if is_last else plan.seqs)  # type: ignore[no-any-return]

        where = f"blocks.{index}"
        h_TD = residual_add(h_TD, part(f"{where}.mixer", self.mixer_norm(h_TD), plan, mix), scale=self.multiplier)
        if is_last:
            h_TD = take_rows(h_TD, plan.out_rows)
        if self.channel is not None:
            branch_TD = part(f"{where}.channel", self.channel_norm(h_TD), plan, think)
            h_TD = residual_add(h_TD, branch_TD, scale=self.multiplier)
        return h_TD


class LM(nn.Module):
    """See the module docstring. Built in fp32; `cast` chooses the compute dtype."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.layers, "the last layer is the one that knows which rows the head needs"
        self.config = config
        self.embed = Linear(config.d_model, {"embed": config.vocab_size})
        self.blocks = nn.ModuleList(Block(layer, config) for layer in config.layers)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, {"head": config.vocab_size})

    def cast(self, dtype: torch.dtype) -> "LM":
        """Parameters in `dtype`, except those a mixer keeps wide (decays, time steps)."""
        for module in self.modules():
            wide = module.wide_params if isinstance(module, Mixer) else ()
            for name, parameter in module.named_parameters(recurse=False):
                if name not in wide or dtype == torch.float64:
                    setattr(module, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.norm.weight.dtype

    @property
    def mixers(self) -> list[Mixer]:
        """One per layer."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    @property
    def can(self) -> Can:
        """What all of its mixers are able to do."""
        return functools.reduce(operator.and_, (mixer.can for mixer in self.mixers))

    @property
    def state_specs(self) -> list[tuple[StateSpec, ...]]:
        """What one sequence carries, per layer."""
        return [mixer.state_specs for mixer in self.mixers]

    def tensor_caches(self, num_seqs: int, dtype: torch.dtype | None = None) -> list[TensorCache]:
        """Fresh functional caches, one per layer: tests, scoring, training with a carried state."""
        return [TensorCache(specs, num_seqs, dtype or self.dtype) for specs in self.state_specs]

    def hidden(self, plan: StepPlan) -> Tensor:
        """[R, D]: the normalised hidden states of `plan.out_rows`."""
        return self.features(plan, ())[0]

    def features(self, plan: StepPlan, taps: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`hidden`, and for each of `taps` the hidden states [T, D] of all rows after so many layers (0 = embeddings,
        negative numbers count from the end: -1 = after the last layer, before the last norm)."""
        h_TD = self.embed.lookup(plan.tokens, self.config.embedding_multiplier)
        last = len(self.blocks)
        assert plan.caches is None or len(plan.caches) == last
        assert all(-last - 1 <= tap <= last for tap in taps), f"a model of {last} layers has no layer of {taps}"
        wanted = [tap % (last + 1) for tap in taps]
        found = {0: h_TD} if 0 in wanted else {}
        for i, block in enumerate(self.blocks, start=1):
            cuts = i == last and last not in wanted
            h_TD = block(h_TD, plan, i - 1, is_last=cuts)
            if i in wanted:
                found[i] = h_TD
        if last in wanted:
            h_TD = take_rows(h_TD, plan.out_rows)
        return self.norm(h_TD), tuple(found[i] for i in wanted)

    def first(self, num_blocks: int) -> "LM":
        """The model of its first blocks, then norm and head: the same parameters, another list of layers."""
        assert 1 <= num_blocks <= len(self.blocks)
        with torch.device("meta"):
            part = LM(replace(self.config, layers=self.config.layers[:num_blocks]))
        part.embed, part.norm, part.head = self.embed, self.norm, self.head
        part.blocks = self.blocks[:num_blocks]
        return part

    def logits(self, h_RD: Tensor) -> Tensor:
        """[R, W] in fp32 or wider. All rows are step rows: their bits do not depend on their number.

        A product in bf16 is rounded to 8 bits, which makes ties of the likeliest tokens common; the first few of
        every row are therefore multiplied once more, in fp32.
        """
        head = self.head or self.embed
        logits = head.product(h_RD, num_step_rows=len(h_RD))
        if logits.dtype == torch.bfloat16:
            ids_RN = logits.topk(min(_REFINED, logits.shape[1])).indices
            first_RN = (head.weight[ids_RN].float() * h_RD.float().unsqueeze(1)).sum(-1)
            logits = logits.float().scatter(1, ids_RN, first_RN)
        return divided(logits, self.config.logits_divider) if self.config.logits_divider != 1.0 else logits

    def forward(self, plan: StepPlan) -> Tensor:
        """Logits [R, W] of `plan.out_rows`."""
        return self.logits(self.hidden(plan))

    def prepack(self) -> "LM":
        """Every weight in the layout of the fastest backend, for inference. The head keeps its plain rows too."""
        for module in self.blocks.modules():
            if isinstance(module, Linear):
                module.prepack()
        (self.head or self.embed).prepack(keep_plain=True)
        return self

    def targets(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Every tensor a checkpoint must fill: (canonical name, module, segment or parameter name).

        Segments of a `Linear` are named `<module>.<segment>` (`blocks.0.mixer.qkv.q`), their biases with `.bias`
        appended; other parameters by their path.
        """
        for path, module in self.named_modules():
            if isinstance(module, Linear):
                for segment in module.segments:
                    yield f"{path}.{segment}", module, segment
                    if module.bias is not None:
                        yield f"{path}.{segment}.bias", module, segment
            else:
                for name, _ in module.named_parameters(recurse=False):
                    yield f"{path}.{name}", module, name
