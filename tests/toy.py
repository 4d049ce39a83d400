"""A small random language model of any layer kinds in fp64, and plain decoding without a cache as its oracle."""

from collections.abc import Mapping, Sequence

import torch

from stretto.core.card import CHANNELS, MIXERS
from stretto.core.judge import Noise
from stretto.core.plan import StepPlan
from stretto.core.policy import DraftPolicy
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine, EngineConfig
from stretto.kernels.sampling import RowSampling, picks
from stretto.models.lm import LM, Layer, LMConfig

VOCAB, WIDTH = 23, 16
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
    layers, wide = [], CHANNELS.card(channel)
    for i, name in enumerate(mixers):
        card = MIXERS.card(name)
        mixer = card.make(**{**card.tiny, "d_model": WIDTH, **(changes or {}).get(name, {})})
        layers.append(Layer(mixer=mixer, channel=wide.make(**{**wide.tiny, "d_model": WIDTH}) if i % 2 == 0 else None))
    config = LMConfig(
        family="toy", d_model=WIDTH, vocab_size=VOCAB, layers=tuple(layers), norm_eps=1e-6, context=context,
        tie_embeddings=False,
    )  # fmt: skip
    lm = config.build()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return lm.cast(torch.float64).eval().requires_grad_(False)


def plain_decode(lm: LM, prompt: Sequence[int], n: int, sampling: Sampling | None = None) -> list[int]:
    """`n` tokens after `prompt`: the whole sequence is computed anew for each of them (chunked form, no cache)."""
    sampling = (sampling or Sampling(temperature=0)).resolve()
    tokens = list(prompt)
    for _ in range(n):
        row = RowSampling(sampling, Noise(sampling.seed or 0), len(tokens), tuple(prompt), tuple(tokens[len(prompt) :]))
        tokens += picks(lm(StepPlan.of([tokens]))[-1:], [row])
    return tokens[len(prompt) :]


class Nodes(DraftPolicy):
    """Always the same number of nodes, or what a list says, step by step (0 = no drafts)."""

    def __init__(self, *schedule: int) -> None:
        self.schedule, self.step = schedule, 0

    def num_nodes(self, num_running: int) -> int:
        self.step += 1
        return self.schedule[self.step % len(self.schedule)]

    def learn(self, *, drafted: int, emitted: int, num_running: int, seconds: float) -> None:
        """Nothing to learn."""


def toy_engine(lm: LM, *, pages: int | None = None, context: int = 128, **options: object) -> Engine:
    """An engine in fp64. pages: so much memory is there (default: plenty)."""
    sizes = {key: options.pop(key) for key in ("max_seqs", "max_rows", "kv") if key in options}
    config = EngineConfig(context=context, **sizes)  # type: ignore[arg-type]
    if pages is not None:
        per_token = sum(s.nbytes(torch.float64) for specs in lm.state_specs for s in specs if s.kind == "paged")
        # Slots are asked for first; what is left becomes pages.
        per_seq = sum(
            int(torch.Size(s.shape).numel()) * 8 for specs in lm.state_specs for s in specs if s.kind == "slot"
        )
        memory = (pages + 1) * 16 * per_token + (config.max_seqs + 1) * per_seq
        config = EngineConfig(context=context, memory_bytes=memory, **sizes)  # type: ignore[arg-type]
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
        engine.cache.check()
        steps += 1
        assert steps < 20_000, "no progress"
    return outputs
