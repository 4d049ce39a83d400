"""A small random language model of any layer kinds in fp64, and plain decoding without a cache as its oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from stretto.core.card import CHANNELS, MIXERS, Registry
from stretto.core.plan import StepPlan
from stretto.core.policy import DraftPolicy, Job
from stretto.core.sampling import Noise, Sampling
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.kernels.sampling import RowSampling, picks
from stretto.models.adapter import Adapter
from stretto.models.block import Wiring
from stretto.models.lm import LM, Layer, LMConfig
from stretto.runner.runner import Sizes

VOCAB, WIDTH = 23, 16
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
HYBRID = ("attention", "gated_delta", "mamba2", "long_conv")


def toy_lm(
    mixers: Sequence[str] = HYBRID,
    seed: int = 0,
    context: int = 512,
    changes: Mapping[str, Mapping[str, object]] | None = None,
    channel: str = "dense",
) -> LM:
    """Layers with the given mixers; parameters large enough that every layer changes the output.

    changes: by mixer, arguments that differ from those of its card. channel: of every second layer.
    """
    torch.manual_seed(seed)
    layers = []
    for i, name in enumerate(mixers):
        mixer = tiny(MIXERS, name, **(changes or {}).get(name, {}))
        layers.append(Layer(mixer=mixer, channel=tiny(CHANNELS, channel) if i % 2 == 0 else None))
    return lively_model(toy_config(layers, context=context))


def tiny(registry: Registry, name: str, **changes: object) -> Any:
    """The small config of a card, as wide as the toys are."""
    card = registry.card(name)
    return card.make(**{**card.tiny, "d_model": WIDTH, **changes})


def toy_config(layers: Sequence[Layer], *, context: int = 512, **options: Any) -> LMConfig:
    """Of a toy with these layers."""
    return LMConfig(
        family="toy", d_model=WIDTH, vocab_size=VOCAB, layers=tuple(layers), norm_eps=1e-6, context=context,
        tie_embeddings=False, **options,
    )  # fmt: skip


def lively_model(config: LMConfig) -> LM:
    """The model in fp64, with parameters large enough that every layer changes the output."""
    lm = config.build()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return lm.cast(torch.float64).eval().requires_grad_(False)


def wired(wiring: Wiring, mixers: Sequence[str] = ("attention", "mamba2"), **options: Any) -> LMConfig:
    """Layers of a mixer and a channel, wired so."""
    return toy_config(
        [Layer(mixer=tiny(MIXERS, name), channel=tiny(CHANNELS, "dense"), wiring=wiring) for name in mixers], **options
    )


def _shared() -> LMConfig:
    """Two blocks by turns: one of its own weights in every layer, one shared by three layers with an adapter each."""
    own = Layer(mixer=tiny(MIXERS, "mamba2"))
    adapter = Adapter(rank=3, matrices=("mixer.qkv", "channel.gate_up"), scale=0.5)
    mixer, channel = tiny(MIXERS, "attention"), tiny(CHANNELS, "dense")
    shared = Layer(mixer=mixer, channel=channel, shared="transformer", adapter=adapter)
    return toy_config([shared, own, shared, replace(own, channel=tiny(CHANNELS, "rwkv_cmix")), shared])


WIRINGS: dict[str, LMConfig] = {
    "post": wired(Wiring(norms="post", mixer_scale=0.7)),
    "output": wired(Wiring(norms="output", channel_scale=1.3), residual_multiplier=0.8),
    "sandwich": wired(Wiring(norms="sandwich"), norm="rms_plus_one"),
    "parallel with one norm": wired(Wiring(parallel="one_norm", mixer_scale=0.6), norm="layer_no_bias"),
    "parallel with two norms": wired(Wiring(parallel="two_norms", channel_scale=0.9), norm="layer"),
    "one part per layer": toy_config(
        [Layer(channel=tiny(CHANNELS, "dense")), Layer(mixer=tiny(MIXERS, "attention")),
         Layer(mixer=tiny(MIXERS, "gated_delta")), Layer(channel=tiny(CHANNELS, "relu2"))]
    ),
    "channels that look back": toy_config(
        [Layer(mixer=tiny(MIXERS, name), channel=tiny(CHANNELS, "rwkv_cmix")) for name in ("attention", "gated_delta")]
    ),
    "a shared block with adapters": _shared(),
}  # fmt: skip
"""One model for each way to wire a layer. Laws over wirings, in torch and native, run over these."""


def plain_decode(lm: LM, prompt: Sequence[int], n: int, sampling: Sampling | None = None) -> list[int]:
    """`n` tokens after `prompt`: the whole sequence is computed anew for each of them (chunked form, no cache)."""
    sampling = (sampling or Sampling(temperature=0)).resolve()
    tokens = list(prompt)
    for _ in range(n):
        row = RowSampling(sampling, Noise(sampling.seed or 0), len(tokens), tuple(prompt), tuple(tokens[len(prompt) :]))
        tokens += picks(lm(StepPlan.of([tokens]))[-1:], [row])
    return tokens[len(prompt) :]


class Nodes(DraftPolicy):
    """Always the same number of tokens, or what a list says, step by step (0 = no drafts)."""

    def __init__(self, *schedule: int) -> None:
        self.schedule, self.step = schedule, 0

    def budgets(self, jobs: Sequence[Job], most: int) -> list[int]:
        self.step += 1
        return [min(self.schedule[self.step % len(self.schedule)], most)] * len(jobs)


def nodes(*schedule: int) -> Policies:
    """Policies that draft as `Nodes` do."""
    return Policies(draft=Nodes(*schedule))


def toy_engine(lm: LM, *, pages: int | None = None, context: int = 128, **options: object) -> Engine:
    """An engine in fp64. pages: so much memory is there (default: plenty)."""
    sizes = {key: options.pop(key) for key in ("max_seqs", "max_rows", "kv") if key in options}
    config = Sizes(context=context, **sizes)  # type: ignore[arg-type]
    if pages is not None:
        per_token = sum(s.nbytes(torch.float64) for specs in lm.state_specs for s in specs if s.kind == "paged")
        # Slots are asked for first; what is left becomes pages.
        per_seq = sum(
            int(torch.Size(s.shape).numel()) * 8 for specs in lm.state_specs for s in specs if s.kind == "slot"
        )
        memory = (pages + 1) * 16 * per_token + (config.max_seqs + 1) * per_seq
        config = Sizes(context=context, memory_bytes=memory, **sizes)  # type: ignore[arg-type]
    return Engine(lm, config, **options)  # type: ignore[arg-type]


def finish(engine: Engine, patience: float = 0.0) -> dict[int, list[int]]:
    """Run until idle; the output tokens by request id. Checks the cache after every step."""
    outputs: dict[int, list[int]] = {}
    steps = 0
    while not engine.is_idle:
        for event in engine.step(patience):
            if event.error is not None:
                raise event.error
            outputs.setdefault(event.rid, []).extend(event.token_ids)
        engine.runner.cache.check()
        steps += 1
        assert steps < 20_000, "no progress"
    return outputs
