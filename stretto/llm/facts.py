"""What an opened model needs, before any weight is loaded."""

from collections.abc import Mapping
from math import prod

import torch

from stretto.cache.pools import layout_of
from stretto.convert.load import value_shape
from stretto.convert.model_file import ModelFile
from stretto.core.page_format import Plain, page_format
from stretto.core.settings import Settings
from stretto.kernels.linear import Linear
from stretto.models.lm import LM
from stretto.runner.sizes import Facts

DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def facts_of(file: ModelFile, settings: Settings, *, native: bool) -> Facts:
    """What a model needs that is run as `settings` say, natively or through torch."""
    with torch.device("meta"):
        lm = LM(file.config)
    dtype = DTYPES[settings.dtype]
    kv = Plain(dtype) if settings.kv == "auto" else page_format(settings.kv)
    return Facts(
        context=file.config.context,
        layout=layout_of(lm.state_specs, kv, torch.float32 if native else dtype),
        kv=kv.name,
        weight_bytes=weight_bytes(file, lm, dtype, native=native),
        vocab_size=lm.config.vocab_size,
        d_model=lm.config.d_model,
        native=native,
    )


def weight_bytes(file: ModelFile, lm: LM, dtype: torch.dtype, *, native: bool) -> int:
    """What the weights take when they are loaded: native kernels keep the bytes of the file's matrices, torch decodes
    them to `dtype` and keeps the head in a second layout."""
    total = 0
    for name, module, leaf in lm.targets():
        count = prod(value_shape(name, module, leaf))
        if not native:
            total += count * dtype.itemsize
        elif isinstance(module, Linear) and not name.endswith(".bias"):
            held = file.held(file.names[name].name)
            total += held.nbytes * count // max(1, prod(held.shape))
        else:
            total += count * 4
    return total if native else total + (lm.head or lm.embed).num_weights * dtype.itemsize
