"""int8 rows in checkpoint directories, as compressed-tensors defines `int-quantized` with the strategy `channel`.

    X.weight        I8  [out, in]   q
    X.weight_scale  F32 [out, 1]    s: a row is s q, for BF16, F16 and F32 scales alike

`quantization_config` in config.json says so. It may also say that activations are rounded, to 8 bits with a scale for
every token that is found while running; we compute more exactly than that.
"""

from collections.abc import Mapping
from typing import Any

import torch

from stretto.codecs._shared import check_finite
from stretto.codecs.int8 import Int8
from stretto.convert._shared import damaged, quoted
from stretto.convert.quantized import Container, Method
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError

_NAME = "compressed-tensors"
SCALE = "_scale"
"""What the name of the scales has after that of the integers."""
_FORMAT = "int-quantized"
_WHOLE: Mapping[str, tuple[Any, ...]] = {
    "format": (_FORMAT,),
    "quantization_status": ("compressed", None),
    "kv_cache_scheme": (None,),
    "transform_config": (None, {}),
}
_GROUP: Mapping[str, tuple[Any, ...]] = {"format": (_FORMAT, None), "output_activations": (None,)}
_BYTES: Mapping[str, tuple[Any, ...]] = {"num_bits": (8,), "type": ("int",), "symmetric": (True,)}
_WEIGHTS = {
    **_BYTES,
    "strategy": ("channel",),
    "dynamic": (False, None),
    "actorder": (None, False, "weight", "static"),  # an order of rounding, which leaves no trace
}
_INPUTS = {**_BYTES, "strategy": ("token",), "dynamic": (True,)}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODEC = Int8()
INT8 = _CODEC.name


class Int8Rows:
    """A container whose I8 matrices are put together with their scales; the other tensors are as they are.

    Raises ModelFileError for integers without scales, or with scales of another form than one for every row.
    """

    def __init__(self, file: Container) -> None:
        self.file, self.path = file, file.path
        present = dict.fromkeys(file.names())
        self._integers = {name for name in present if file.kind(name)[0] == "I8"}
        for name in self._integers:
            self._check(name, present)
        scales = {name + SCALE for name in self._integers}
        self._names = [name for name in present if name not in scales]

    def names(self) -> list[str]:
        """The tensors, in the order of the file; scales of rows go with their integers."""
        return list(self._names)

    def held(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The codec and the shape of a tensor."""
        return (INT8, self.file.kind(name)[1]) if name in self._integers else self.file.held(name)

    def stored(self, name: str) -> Stored:
        """A tensor: a view of the file, or int8 rows that were put together."""
        if name not in self._integers:
            return self.file.stored(name)
        dtype, _ = self.file.kind(name + SCALE)
        scales = self.file.raw(name + SCALE).clone().view(_FLOATS[dtype])  # the copy aligns them
        stored = _CODEC.join(self.file.raw(name).view(torch.int8).view(self.file.kind(name)[1]), scales)
        check_finite(stored, name, str(self.path))
        return stored

    def _check(self, name: str, present: Mapping[str, None]) -> None:
        shape = self.file.kind(name)[1]
        if name + SCALE not in present:
            raise damaged(self.path, f"tensor {quoted(name)} is of integers and has no {quoted(name + SCALE)}")
        dtype, scales = self.file.kind(name + SCALE)
        if len(shape) != 2 or dtype not in _FLOATS or scales not in ((shape[0],), (shape[0], 1)):
            raise ModelFileError(
                f"{self.path}: tensor {quoted(name)} is I8 {list(shape)}, with scales {dtype} {list(scales)}",
                why="integers can be read in matrices with one floating-point scale for every row",
            )


def check(quantization: Mapping[str, Any], where: str) -> None:
    """Refuse every setting that does not say int8 rows, by name."""
    _follow(quantization, _WHOLE, where)
    _follow(quantization.get("sparsity_config") or {}, {"format": ("dense", None)}, where, "sparsity_config.")
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelFileError(f"{where}: quantization_config.config_groups is {groups!r}")
    for name, group in groups.items():
        at = f"config_groups.{name}."
        _follow(group, _GROUP, where, at)
        _follow(group.get("weights"), _WEIGHTS, where, f"{at}weights.")
        if group.get("input_activations") is not None:
            _follow(group["input_activations"], _INPUTS, where, f"{at}input_activations.")


def _follow(given: object, known: Mapping[str, tuple[Any, ...]], where: str, prefix: str = "") -> None:
    """Refuse settings that are not as `known` says, by name."""
    for key, values in known.items():
        found = given.get(key) if isinstance(given, dict) else None
        if not any(type(found) is type(value) and found == value for value in values):
            supported = " or ".join(repr(value) for value in values if value)
            raise ModelFileError(
                f"{where}: quantization_config.{prefix}{key} is {found!r}",
                why=f"supported: {supported or values[0]}",
            )


def description(shapes: Mapping[str, tuple[str, tuple[int, ...]]], embedding: str) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint with these tensors (name -> codec and shape): of weights alone, because
    activations rounded to 8 bits, which other writers ask for beside them, cost a model far more."""
    plain = [n for n, (codec, shape) in shapes.items() if codec != INT8 and len(shape) == 2 and n != embedding]
    ignored = {name.removesuffix(".weight") for name in plain if name.endswith(".weight")}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "strategy": "channel"}
    group = {
        "targets": ["Linear"],
        "weights": weights | {"dynamic": False},
        "input_activations": None,
        "output_activations": None,
        "format": _FORMAT,  # of weights alone, readers would guess another
    }
    return {
        "quant_method": _NAME,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        # a tied head has no tensor, and is a matrix all the same
        "ignore": sorted(ignored | ({"lm_head"} if "lm_head.weight" not in shapes else set())),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


METHOD = Method(idea=f"int8 rows of {_NAME}", check=check, read=Int8Rows)
