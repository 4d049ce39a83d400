"""A model file becomes an `LM`: fill every tensor.

Tensors are decoded one at a time from memory-mapped files, straight into the parameters of the compute dtype, so the
peak is the model plus a few megabytes. Every tensor of the model must be found and every tensor of the file must be
used (or be on the family's ignore list, or repeat another): a renamed norm is an error, not a slightly wrong model.
"""

import difflib
from collections.abc import Callable

import torch

from stretto.convert._shared import codec_named, forget_pages
from stretto.convert.model_file import ModelFile
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError
from stretto.kernels.linear import Linear
from stretto.kernels.linear.native import storage
from stretto.kernels.native.library import Team
from stretto.models.lm import LM
from stretto.models.table import Source

Progress = Callable[[int, int], None]
"""`progress(done, total)`: numbers of the model filled so far."""


def load_model(
    model: ModelFile,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    *,
    team: Team | None = None,
) -> LM:
    """Build the model in `dtype` and fill it; with a `team`, matrices are repacked for the native kernels as they are
    stored, and never decoded. Raises ModelFileError for missing, extra or misshapen tensors, before any memory is
    taken."""
    with torch.device("meta"):
        lm = LM(model.config)
    check_tensors(model, lm)
    targets = list(lm.targets())
    lm.cast(dtype)
    total, done = sum(p.numel() for p in lm.parameters()), 0
    _materialize(lm, with_matrices=team is None)
    for name, module, leaf in targets:
        done += _fill(model, name, module, leaf, team)
        if progress is not None:
            progress(done, total)
    return lm.eval().requires_grad_(False)


def matrix_codecs(model: ModelFile) -> set[str]:
    """The codecs of every tensor that becomes a matrix; what the native kernels cannot hold says so by its name."""
    with torch.device("meta"):
        lm = LM(model.config)
    matrices = [name for name, module, _ in lm.targets() if isinstance(module, Linear) and not name.endswith(".bias")]
    sources = [model.names[name] for name in matrices if name in model.names]
    held = [(model.held(source.name), source.columns) for source in sources]
    return {
        storage(codec_named(tensor.codec if _moves_blocks(tensor.codec, columns) else "f32"), tensor.shape[-1])
        for tensor, columns in held
    }


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
        source = model.names[name]
        found = model.held(source.name).shape
        if source.rows is None:
            expected = source.shape or shape
        else:
            ends[source.name] = max(ends.get(source.name, 0), sum(source.rows))
            expected = (found[0] if found else 0, *shape[1:])
        if _without_ones(found) != _without_ones(expected):
            _wrong_shape(model, source, found, str(expected))
    for theirs, rows in ends.items():
        if model.held(theirs).shape[0] != rows:
            _wrong_shape(model, Source(name=theirs), model.held(theirs).shape, f"{rows} rows")
    used = {model.names[name].name for name in shapes}
    family = model.family
    extra = sorted(present - used - model.surplus)
    extra = [name for name in extra if not name.endswith(family.ignore) and not name.startswith(family.ignore_under)]
    extra = [name for name in extra if not (name.endswith(".bias") and _is_zero(model, name))]
    if extra:
        raise ModelFileError(
            f"{model.path} holds {len(extra)} tensors that this architecture does not use",
            why=f"the result would not be this model's: {', '.join(extra[:10])}",
        )


def _is_zero(model: ModelFile, name: str) -> bool:
    """Whether adding the tensor would change nothing: a bias that the configuration denies."""
    return not model.tensors.stored(name).decode(torch.float32).any()


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _wrong_shape(model: ModelFile, source: Source, found: tuple[int, ...], want: str) -> None:
    raise ModelFileError(
        f"{model.path}: tensor {source.name} has shape {found}", why=f"the configuration asks for {want}"
    )


def _materialize(lm: LM, *, with_matrices: bool) -> None:
    for module in lm.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Linear) and name == "weight" and not with_matrices:
                continue
            # not `empty_like`: on a meta tensor it imports torch's symbolic shapes, which takes seconds
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))


def _fill(model: ModelFile, name: str, module: torch.nn.Module, leaf: str, team: Team | None) -> int:
    """Fill one tensor; returns its number of values."""
    source, shape = model.names[name], value_shape(name, module, leaf)
    stored = model.tensors.stored(source.name)
    if isinstance(module, Linear) and not name.endswith(".bias"):
        if team is None:
            module.load(leaf, stored_rows(stored, source))
        else:
            module.hold(leaf, stored_rows(stored, source))
            if len(module.stored) == len(module.segments):
                parts = list(module.stored.values())
                module.tile(team)
                for part in parts:  # beside the tiles nobody needs them
                    forget_pages(part.data)
    else:
        target = module.bias[module.rows(leaf)] if isinstance(module, Linear) else module.get_parameter(leaf)  # type: ignore[index]
        target.data.copy_(stored_values(stored, source, shape))
    return int(torch.Size(shape).numel())


def stored_rows(stored: Stored, source: Source) -> Stored:
    """Our rows of a stored matrix, as bytes and exact in every codec (see `stored_columns` for the exception)."""
    if source.rows is not None:
        stored = stored.rows(source.rows[0], sum(source.rows))
    if source.order is not None:
        stored = stored.permute_rows(source.order)
    return stored if source.columns is None else stored_columns(stored, source.columns)


def stored_columns(stored: Stored, order: torch.Tensor) -> Stored:
    """A matrix whose column i is column order[i] of `stored`. Whole blocks of the codec move as bytes; where the order
    tears them apart, the values are decoded, into f32."""
    codec = stored.codec
    if not _moves_blocks(codec.name, order):
        return codec_named("f32").encode(stored.decode(torch.float32)[:, order])
    head, blocks = stored.data[:, : codec.head_bytes], stored.data[:, codec.head_bytes :]
    moved = blocks.unflatten(1, (-1, codec.block_bytes))[:, order[:: codec.block] // codec.block]
    return Stored(codec, stored.shape, torch.cat([head, moved.flatten(1)], 1))


def _moves_blocks(codec: str, order: torch.Tensor | None) -> bool:
    """Whether an order of columns, where there is one, keeps the blocks of a codec together."""
    if order is None:
        return True
    block = codec_named(codec).block
    if len(order) % block:
        return False
    first = order[::block]
    whole = (first[:, None] + torch.arange(block)).flatten()
    return bool((first % block == 0).all()) and torch.equal(whole, order)


def stored_values(stored: Stored, source: Source, shape: tuple[int, ...]) -> torch.Tensor:
    """Our numbers of a stored vector or small tensor, fp32 in `shape`."""
    values = stored.decode(torch.float32)
    if source.rows is not None:
        values = values[source.rows[0] : sum(source.rows)]
    values = values.reshape(shape)
    values = values if source.load is None else source.load(values.double()).float()
    return values if source.order is None else values[source.order]


def tile_model(lm: LM, team: Team) -> LM:
    """Every matrix in native tiles of fp32: for a model that was made or trained here, and not read from a file."""
    codec = CODECS.card("f32").make()
    for module in lm.modules():
        if isinstance(module, Linear):
            for segment in module.segments:
                module.hold(segment, codec.encode(module.weight[module.rows(segment)]))
            module.tile(team)
    return lm
