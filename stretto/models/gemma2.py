"""Gemma 2 (arXiv 2408.00118): layers with a sliding window and layers that see all by turns.

    h0 = sqrt(d_model) * embed
    h += norm(f(norm(h)))        f: attention, then a gated MLP with tanh-GELU
    logits = c tanh(head(norm(h)) / c)

Scores of attention are capped in the same way. Norms multiply by 1 + w; checkpoints hold w, GGUF files the sum. Scores
are divided by the root of `query_pre_attn_scalar`, for which GGUF has no key.
"""

from dataclasses import replace

from stretto.models.block import Wiring
from stretto.models.family import Family
from stretto.models.parts import gemma
from stretto.models.parts.outer import context
from stretto.models.reader import Reader
from stretto.models.skeleton import GGUF_SKELETON, HF_SKELETON
from stretto.models.table import Known, Way
from stretto.models.ways import count, number

_LARGE = 46  # layers of the 27B model


_WINDOW = count("sliding_window", 4096), count("attention.sliding_window", 4096)


def _cap(key: str, default: float) -> tuple[Way, Way]:
    """A missing key means that there is a cap; in config.json null means that there is none."""

    def read(read: Reader, known: Known) -> float | None:
        return read.number(key, default) if key not in read.config or read.get(key, None) is not None else None

    return Way(read, lambda value, config: {key: value}), replace(number(key, default), says=bool)


FAMILY = Family(
    name="gemma2",
    hf={"Gemma2ForCausalLM": "gemma2"},
    gguf=("gemma2",),
    kinds=gemma.kinds({"softcap": _cap("attn_logit_softcapping", 50.0)}, {"window": _WINDOW}, _LARGE),
    wiring=Wiring(norms="sandwich"),
    pattern=gemma.patterns(2),
    outer=gemma.outer(_LARGE, {"context": context(8192), "logits_softcap": _cap("final_logit_softcapping", 30.0)}),
    hf_skeleton=replace(HF_SKELETON, channel_norm="pre_feedforward_layernorm"),
    gguf_skeleton=replace(GGUF_SKELETON, plus_one=True),
    tiny={
        "tie_word_embeddings": True,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
)
