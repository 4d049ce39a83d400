"""`Sizes`: what a runner has room for. `Facts`: what a model needs, from which sizes are chosen."""

from dataclasses import dataclass

from stretto.cache.layout import PoolLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """context: longest sequence; max_seqs: sequences that run at once; max_rows: rows of a step; memory_bytes: for the
    cache; kv: the format of cached keys and values, a codec with `Can.KV`, or "auto": the model's dtype;
    coarse_prompts: native kernels compute prompts with 8-bit activations and 16-bit attention; room: positions that a
    program has room for at least, so that later runs with a longer context need no other; prefix_bytes: of the cache,
    what prefixes of earlier texts may hold, 0 = none are kept."""

    context: int
    max_seqs: int = 32
    max_rows: int = 512
    memory_bytes: int = 2 << 30
    kv: str = "auto"
    coarse_prompts: bool = False
    room: int = 0
    prefix_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """context: longest sequence that the model was made for; layout: its pools; kv: the name of their format;
    weight_bytes: what its weights take when they are loaded; vocab_size, d_model: of its last matrix; native: whether
    native kernels run it."""

    context: int
    layout: PoolLayout
    kv: str
    weight_bytes: int
    vocab_size: int
    d_model: int
    native: bool
