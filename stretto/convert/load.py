"""A model file becomes an `LM`: find the family, translate the config, fill every tensor.

Tensors are decoded one at a time from memory-mapped files, straight into the parameters of the compute dtype, so the
peak is the model plus a few megabytes. Every tensor of the model must be found and every tensor of the file must be
used (or be on the family's ignore list): a renamed norm is an error, not a slightly wrong model.
"""

import difflib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import stretto.models
from stretto.convert._compressed import Int8Rows, described
from stretto.convert._shared import codec_named
from stretto.convert.gguf_ import GGUFFile
from stretto.convert.safetensors_ import open_checkpoint
from stretto.core.errors import ModelFileError, UserError
from stretto.core.packed import Packed
from stretto.kernels.linear import Linear
from stretto.kernels.linear.native import storage
from stretto.kernels.native.library import Pool
from stretto.models.family import Family, Names, Stored
from stretto.models.lm import LM, LMConfig

Progress = Callable[[int, int], None]
"""`progress(done, total)`: numbers of the model filled so far."""

GGUF_FREQUENCIES = "rope_freqs.weight"


class TensorFile(Protocol):
    """A container of named stored tensors."""

    def names(self) -> list[str]: ...
    def packed(self, name: str) -> Packed: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A tensor of a file, before its bytes are touched."""

    codec: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An opened model: what it is and where its tensors are; nothing is loaded yet.

    names: where our tensors lie in `tensors`. held: of a tensor there. metadata: GGUF metadata, or {} for a
    checkpoint directory.
    """

    path: Path
    family: Family
    config: LMConfig
    names: Names
    tensors: TensorFile
    held: Callable[[str], Held]
    metadata: Mapping[str, Any]

    @property
    def is_gguf(self) -> bool:
        """A GGUF file, not a checkpoint directory."""
        return self.path.suffix == ".gguf"


def open_model(path: Path) -> ModelFile:
    """Open a `.gguf` file or a checkpoint directory.

    Raises UserError if there is nothing at `path`, ModelFileError for anything it cannot run exactly.
    """
    if path.is_dir():
        return _open_hf(path)
    if not path.exists():
        raise UserError(f"there is no {path}", try_="the path of a .gguf file or of a checkpoint directory")
    if path.suffix == ".gguf":
        return _open_gguf(path)
    raise ModelFileError(
        f"{path} is neither a .gguf file nor a checkpoint directory",
        why="a directory needs config.json and safetensors files; pickled weights are never loaded",
    )


def _open_hf(path: Path) -> ModelFile:
    config_path = path / "config.json"
    if not config_path.is_file():
        raise ModelFileError(f"{path} has no config.json", why="a checkpoint directory is recognised by it")
    config = read_json(config_path)
    family = _family(lambda f: f.hf, _announced(config), str(config_path))
    is_int8 = described(config, str(config_path))
    config.pop("quantization_config", None)
    ours = family.from_hf(config)
    plain = open_checkpoint(path)
    file = Int8Rows(plain) if is_int8 else plain

    def held(name: str) -> Held:
        codec, shape = file.held(name)
        return Held(codec=codec, shape=shape, nbytes=codec_named(codec).nbytes(shape))

    return ModelFile(path, family, ours, family.hf_names(ours), file, held, {})


def _announced(config: Mapping[str, Any]) -> object:
    """`architectures[0]`; a file without it says the same by `model_type`."""
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return names[0]
    spelled = f"{config.get('model_type')}ForCausalLM".replace("_", "").lower()
    return next((n for f in families() for n in f.hf if n.lower() == spelled), config.get("model_type"))


def _open_gguf(path: Path) -> ModelFile:
    file = GGUFFile(path)
    table = {name: Held(codec=i.codec, shape=i.shape, nbytes=i.nbytes) for name, i in file.tensors.items()}
    shapes = {name: info.shape for name, info in table.items()}
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise ModelFileError(f"{path} has no matrix token_embd.weight", why="every language model needs embeddings")
    family = _family(lambda f: f.gguf, file.metadata.get("general.architecture"), str(path))
    known: dict[str, Any] = {**file.metadata, "stretto.tensors": shapes}
    if GGUF_FREQUENCIES in shapes:
        known["stretto.rope_divisors"] = file.packed(GGUF_FREQUENCIES).decode(torch.float32).flatten().tolist()
    ours = family.from_gguf(known)
    return ModelFile(path, family, ours, family.gguf_names(ours), file, table.__getitem__, file.metadata)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelFileError otherwise. Bare Infinity and NaN are accepted, as writers emit them."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise ModelFileError(f"{path} is not readable JSON", why=str(problem)) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object", why=f"it holds a {type(value).__name__}")
    return value


def families() -> list[Family]:
    """Every family file of models/."""
    found = []
    for module in pkgutil.iter_modules(stretto.models.__path__):
        family = getattr(importlib.import_module(f"stretto.models.{module.name}"), "FAMILY", None)
        found += [family] if family is not None else []
    return found


def _family(names: Callable[[Family], tuple[str, ...]], announced: object, where: str) -> Family:
    known = {name: family for family in families() for name in names(family)}
    if announced in known:
        return known[str(announced)]
    near = difflib.get_close_matches(str(announced), known, n=2)
    raise ModelFileError(
        f"{where}: architecture {announced!r} is not supported",
        why=f"supported: {', '.join(sorted(known))}",
        try_=f"did you mean a model of {' or '.join(near)}?" if near else None,
    )


def load_model(
    model: ModelFile,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    *,
    pool: Pool | None = None,
) -> LM:
    """Build the model in `dtype` and fill it; with a `pool`, matrices are repacked for the native kernels as they are
    stored, and never decoded. Raises ModelFileError for missing, extra or misshapen tensors, before any memory is
    taken."""
    with torch.device("meta"):
        lm = LM(model.config)
    check_tensors(model, lm)
    targets = list(lm.targets())
    lm.cast(dtype)
    total, done = sum(p.numel() for p in lm.parameters()), 0
    _materialize(lm, with_matrices=pool is None)
    for name, module, leaf in targets:
        done += _fill(model, name, module, leaf, pool)
        if progress is not None:
            progress(done, total)
    return lm.eval().requires_grad_(False)


def matrix_codecs(model: ModelFile) -> set[str]:
    """The codecs of every tensor that becomes a matrix; what the native kernels cannot hold says so by its name."""
    with torch.device("meta"):
        lm = LM(model.config)
    matrices = [name for name, module, _ in lm.targets() if isinstance(module, Linear) and not name.endswith(".bias")]
    held = [model.held(model.names[name].name) for name in matrices if name in model.names]
    return {storage(tensor.codec, tensor.shape[-1]) for tensor in held}


def value_shape(name: str, module: torch.nn.Module, leaf: str) -> tuple[int, ...]:
    """The shape of one entry of `LM.targets`."""
    if not isinstance(module, Linear):
        return tuple(module.get_parameter(leaf).shape)
    return (module.segments[leaf],) if name.endswith(".bias") else (module.segments[leaf], module.d_in)


def check_tensors(model: ModelFile, lm: LM) -> None:
    """The file must hold every tensor of `lm` in its shape, and nothing that goes unused; else ModelFileError."""
    shapes = {name: value_shape(name, module, leaf) for name, module, leaf in lm.targets()}
    present = set(model.tensors.names())
    missing = [model.names[name].name if name in model.names else name for name in shapes]
    missing = [name for name in missing if name not in present]
    if missing:
        near = difflib.get_close_matches(missing[0], present, n=2)
        raise ModelFileError(
            f"{model.path} lacks {len(missing)} tensors",
            why=f"missing: {', '.join(missing[:10])}" + (f"; nearest present: {', '.join(near)}" if near else ""),
        )
    ends: dict[str, int] = {}
    for name, shape in shapes.items():
        stored = model.names[name]
        found = model.held(stored.name).shape
        if stored.rows is None:
            expected = stored.shape or shape
        else:
            ends[stored.name] = max(ends.get(stored.name, 0), sum(stored.rows))
            expected = (found[0] if found else 0, *shape[1:])
        if _without_ones(found) != _without_ones(expected):
            _wrong_shape(model, stored, found, str(expected))
    for theirs, rows in ends.items():
        if model.held(theirs).shape[0] != rows:
            _wrong_shape(model, Stored(name=theirs), model.held(theirs).shape, f"{rows} rows")
    used = {model.names[name].name for name in shapes}
    extra = sorted(n for n in present - used if not n.endswith(model.family.ignore))
    if extra:
        raise ModelFileError(
            f"{model.path} holds {len(extra)} tensors that this architecture does not use",
            why=f"the result would not be this model's: {', '.join(extra[:10])}",
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _wrong_shape(model: ModelFile, stored: Stored, found: tuple[int, ...], want: str) -> None:
    raise ModelFileError(
        f"{model.path}: tensor {stored.name} has shape {found}", why=f"the configuration asks for {want}"
    )


def _materialize(lm: LM, *, with_matrices: bool) -> None:
    for module in lm.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Linear) and name == "weight" and not with_matrices:
                continue
            # not `empty_like`: on a meta tensor it imports torch's symbolic shapes, which takes seconds
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))


def _fill(model: ModelFile, name: str, module: torch.nn.Module, leaf: str, pool: Pool | None) -> int:
    """Fill one tensor; returns its number of values."""
    stored, shape = model.names[name], value_shape(name, module, leaf)
    packed = model.tensors.packed(stored.name)
    if isinstance(module, Linear) and not name.endswith(".bias"):
        if pool is None:
            module.load(leaf, stored_rows(packed, stored))
        else:
            module.hold(leaf, stored_rows(packed, stored))
            if len(module.packed) == len(module.segments):
                module.pack(pool)
    else:
        target = module.bias[module.rows(leaf)] if isinstance(module, Linear) else module.get_parameter(leaf)  # type: ignore[index]
        target.data.copy_(stored_values(packed, stored, shape))
    return int(torch.Size(shape).numel())


def stored_rows(packed: Packed, stored: Stored) -> Packed:
    """Our rows of a stored matrix: bytes only, exact in every codec."""
    if stored.rows is not None:
        packed = packed.rows(stored.rows[0], sum(stored.rows))
    return packed if stored.order is None else packed.permute_rows(stored.order)


def stored_values(packed: Packed, stored: Stored, shape: tuple[int, ...]) -> torch.Tensor:
    """Our numbers of a stored vector or small tensor, fp32 in `shape`."""
    values = packed.decode(torch.float32)
    if stored.rows is not None:
        values = values[stored.rows[0] : sum(stored.rows)]
    values = values.reshape(shape)
    values = values if stored.load is None else stored.load(values.double()).float()
    return values if stored.order is None else values[stored.order]
