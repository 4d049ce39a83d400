"""A whole mixer in thirty lines: linear attention whose heads forget at fixed rates (retention, arXiv 2307.08621).

It has no decode loop and no rollback: `glr` reads, writes and replays the state that the mixer declares. To make it a
filler, move the class to a file of stretto/mixers and end it with a `CARD`; the laws then find it. (The one that is
there, stretto/mixers/retention.py, has rotated keys and a gated norm besides.)

    python examples/add_a_mixer.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stretto.channels.dense import Dense
from stretto.core.card import Can
from stretto.core.mixer import Mixer
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, StateSpec, slot
from stretto.kernels.glr import glr
from stretto.kernels.linear import Linear
from stretto.models.lm import Layer, LMConfig


class Retention(Mixer):
    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        d_model: int
        num_heads: int

        def build(self) -> "Retention":
            return Retention(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.d_model, self.heads, self.size = config.d_model, config.num_heads, config.d_model // config.num_heads
        self.qkv = Linear(config.d_model, dict.fromkeys("qkv", config.d_model))
        self.out = Linear(config.d_model, {"out": config.d_model})

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        shape = (self.heads, self.size, self.size)
        return (StateSpec(name="memory", shape=shape, dtype=torch.float32, kind="slot"),)

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        q, k, v = (part.view(-1, self.heads, self.size) for part in self.qkv.split(self.qkv(x_TD, seqs)))
        g_H = torch.log1p(-(2.0 ** -torch.arange(5.0, 5.0 + self.heads)))  # each head forgets half as fast as the last
        memory = None if cache is None else slot(cache, "memory")
        y_THV = glr(q, k, v, g=g_H.expand(len(x_TD), -1), seqs=seqs, state=memory, scale=self.size**-0.5)
        out: Tensor = self.out(y_THV.flatten(1), seqs)
        return out


def main() -> None:
    torch.manual_seed(0)
    layer = Layer(mixer=Retention.Config(d_model=32, num_heads=4), channel=Dense.Config(d_model=32, d_hidden=64))
    lm = LMConfig(
        family="toy", d_model=32, vocab_size=50, layers=(layer, layer), norm_eps=1e-5, context=64, tie_embeddings=True
    ).build()
    tokens = torch.randint(50, (20,))
    with torch.inference_mode():
        whole = lm(StepPlan.of([tokens.tolist()]))
        caches, steps = lm.tensor_caches(num_seqs=1), []
        for t, token in enumerate(tokens):
            seqs = Seqs.of([1], [t], num_step=1)  # one new row after t cached ones, in step form
            steps.append(lm(StepPlan([int(token)], seqs, [0], caches)))
    print(f"whole sequence against token by token, largest difference: {(whole - torch.cat(steps)).abs().max():.1e}")


if __name__ == "__main__":
    main()
