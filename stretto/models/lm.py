"""`LM`: the one model class. A language model is a list of declared layers, any mixer with any channel.

    h = embed(tokens) * embedding_multiplier
    h = h + residual_multiplier * mixer(norm(h))       per layer, where it has one
    h = h + residual_multiplier * channel(norm(h))     the same; other ways to wire the two: stretto/models/block.py
    logits = head(norm(h)) / logits_divider, capped by logits_softcap c as c tanh(logits / c) where there is one

Families (one small file each, beside this one) translate foreign configs into `LMConfig` and name the tensors.
"""

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stretto.core.card import Can
from stretto.core.channel import Channel
from stretto.core.costs import TokenCost
from stretto.core.errors import UserError
from stretto.core.mixer import Mixer
from stretto.core.pages import PageGroup
from stretto.core.plan import StepPlan
from stretto.core.state import StateSpec, TensorCache
from stretto.kernels.linear import Linear
from stretto.kernels.lora import LoraTable
from stretto.kernels.rowwise import divided, take_rows
from stretto.models.block import Block, Layer, Norm, NormKind

__all__ = ["LM", "LMConfig", "Layer"]

_REFINED = 8  # likeliest tokens whose bf16 logits are computed again in fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class LMConfig:
    """A whole model. family: the file in models/ that made it. context: longest sequence it was made for. norm: of all
    layers and before the head."""

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
    logits_softcap: float | None = None
    norm: NormKind = "rms"

    def build(self) -> "LM":
        """Randomly initialised, fp32."""
        return LM(self)


class LM(nn.Module):
    """See the module docstring. Built in fp32; `cast` chooses the compute dtype."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        assert config.layers, "the last layer is the one that knows which rows the head needs"
        self.config = config
        self.embed = Linear(config.d_model, {"embed": config.vocab_size})
        self.blocks = nn.ModuleList(_blocks(config))
        self.norm = Norm(config.norm, config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, {"head": config.vocab_size})
        self.loras: LoraTable | None = None  # models/lora.py

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
    def vocab_size(self) -> int:
        """Tokens that have scores."""
        return self.config.vocab_size

    @property
    def d_model(self) -> int:
        """Numbers of a hidden state."""
        return self.config.d_model

    @property
    def abilities(self) -> tuple[tuple[int, str, Can], ...]:
        """Of every part: the number of its layer, its name and what it can do."""
        return tuple((i, type(part).__name__, part.can) for i, part in self.parts)

    @property
    def parts(self) -> list[tuple[int, Mixer | Channel]]:
        """The mixers and channels, with the numbers of their layers."""
        return [(i, part) for i, block in enumerate(self.blocks) for part in block.parts]  # type: ignore[union-attr]

    @property
    def can(self) -> Can:
        """What all of its parts are able to do."""
        return functools.reduce(operator.and_, (part.can for _, part in self.parts))

    @property
    def state_specs(self) -> list[tuple[StateSpec, ...]]:
        """What one sequence carries, per layer."""
        return [block.state_specs for block in self.blocks]  # type: ignore[misc]

    @property
    def token_cost(self) -> TokenCost:
        """Of a prompt, whose head reads one row alone. A window is taken for full."""
        linears = (part for block in self.blocks for part in block.modules() if isinstance(part, Linear))
        return _token_cost(sum(linear.num_weights for linear in linears), [part for _, part in self.parts])

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
        uses: Counter[nn.Module] = Counter()
        for i, block in enumerate(self.blocks, start=1):
            h_TD = block(h_TD, plan, i - 1, use=uses[block], is_last=i == last and last not in wanted)
            uses[block] += 1
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
        part.embed, part.norm, part.head, part.loras = self.embed, self.norm, self.head, self.loras
        part.blocks = self.blocks[:num_blocks]
        return part

    def logits(self, h_RD: Tensor, num_step_rows: int) -> Tensor:
        """[R, W] in fp32 or wider. The bits of the first `num_step_rows` rows depend neither on their number nor on the
        other rows; the others are one product. Serving needs all rows to be so, training none.

        A product in bf16 is rounded to 8 bits, which makes ties of the likeliest tokens common; the first few of
        every step row are therefore multiplied once more, in fp32.
        """
        head = self.head or self.embed
        logits = head.product(h_RD, num_step_rows)
        if logits.dtype == torch.bfloat16:
            step_RD, ids_RN = h_RD[:num_step_rows], logits[:num_step_rows].topk(min(_REFINED, logits.shape[1])).indices
            first_RN = (head.weight[ids_RN].float() * step_RD.float().unsqueeze(1)).sum(-1)
            logits = logits.float()
            logits[:num_step_rows].scatter_(1, ids_RN, first_RN)
        divider, cap = self.config.logits_divider, self.config.logits_softcap
        logits = logits if divider == 1.0 else divided(logits, divider)
        return logits if cap is None else cap * torch.tanh(divided(logits, cap))

    def forward(self, plan: StepPlan) -> Tensor:
        """Logits [R, W] of `plan.out_rows`. Without caches they are those of training: no row is a step row."""
        h_RD = self.hidden(plan)
        return self.logits(h_RD, num_step_rows=0 if plan.caches is None else len(h_RD))

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
        appended; other parameters by their path. What layers share stands under the first of them.
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


def _token_cost(num_weights: int, parts: Sequence[Mixer | Channel]) -> TokenCost:
    per_token, per_pair = 2 * num_weights, 0
    for part in parts:
        if isinstance(part, Mixer) and part.pair_flops:
            window = PageGroup.parse(part.state_specs[0].group).window
            per_token += part.pair_flops * (window or 0)
            per_pair += part.pair_flops * (window is None)
    return TokenCost(per_token=per_token, per_pair=per_pair)


def _blocks(config: LMConfig) -> list[Block]:
    """One per layer; layers that share one have the same."""

    def norm() -> Norm:
        return Norm(config.norm, config.d_model, config.norm_eps)

    blocks: list[Block] = []
    made: dict[str, tuple[Layer, Block]] = {}
    sharers = Counter(layer.shared for layer in config.layers if layer.shared is not None)
    for i, layer in enumerate(config.layers):
        if layer.shared in made:
            first, block = made[layer.shared]
            if layer != first:
                raise UserError(
                    f"layer {i} differs from another that shares {layer.shared!r}", why="weights fit one of them"
                )
        else:
            block = Block(layer, norm, config.residual_multiplier)
            if layer.adapter is not None:
                layer.adapter.attach(block, 1 if layer.shared is None else sharers[layer.shared])
            if layer.shared is not None:
                made[layer.shared] = layer, block
        blocks.append(block)
    return blocks
