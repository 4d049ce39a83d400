"""One model file becomes another: checkpoint directory to GGUF and back, or the same format in another number format.

Tensors are written one at a time. A tensor whose codec does not change keeps its bytes, rows moved where the formats
order them differently. In GGUF files everything but the large matrices is f32, as ggml's readers want it.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from stretto.convert._export import HF_FILES, gguf_metadata, hf_files
from stretto.convert._shared import replace_file
from stretto.convert.gguf_ import TYPE_OF_CODEC, write_gguf
from stretto.convert.load import check_tensors, stored_columns, stored_rows, stored_values, value_shape
from stretto.convert.model_file import ModelFile, open_model
from stretto.convert.quantized.compressed_tensors import INT8, description
from stretto.convert.safetensors_ import HELD, write_safetensors
from stretto.core.card import CODECS, Can
from stretto.core.codec import Codec, Stored
from stretto.core.errors import RunError, UserError
from stretto.kernels.linear import Linear
from stretto.models.lm import LM
from stretto.models.table import Source

Format = Literal["hf", "gguf"]
Progress = Callable[[int, int], None]
"""`progress(done, total)`: bytes of tensors written so far."""

_STEP = 8 << 20  # bytes of fp32 values held while re-encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a conversion wrote. kept: tensor -> why it is not in the number format that was asked for."""

    path: Path
    num_tensors: int
    nbytes: int
    codecs: Mapping[str, int]  # bytes by codec
    kept: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Out:
    """A tensor to be written."""

    codec: str
    shape: tuple[int, ...]
    load: Callable[[], Stored]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """One of our tensors on its way: where it comes from and where it goes."""

    source: Source
    target: Source
    shape: tuple[int, ...]
    is_matrix: bool


def convert(
    src: Path,
    dst: Path,
    to: Format,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the model `src` as a checkpoint directory (`hf`) or a GGUF file (`gguf`) at `dst`.

    dtype: number format of the matrices, f32 f16 bf16, in a directory int8 and in GGUF any other codec that can write
    (q8_0, q4_0, ...). None keeps what is there; what the target cannot hold becomes f32. Rows that a block format
    cannot cut are f16. The embedding and the head of an int8 directory are not int8, as readers of it expect.

    `dst` appears when it is complete; nothing is left behind on failure. Raises UserError for an existing `dst`
    without `overwrite`, ModelFileError for what the target cannot express, RunError if the disk is full.
    """
    _check_target(src, dst, to, dtype, overwrite)
    model = open_model(src)
    with torch.device("meta"):
        lm = LM(model.config)
    check_tensors(model, lm)
    kept: dict[str, str] = {}
    choose = partial(_choose, to, dtype, kept, _ends(model) if to == "hf" else ())
    same_format = model.is_gguf == (to == "gguf")
    outs = _copies(model, lm, choose) if same_format else _translations(model, lm, to, choose)
    writer = _write_hf if to == "hf" else _write_gguf
    notes = writer(model, dst, outs, _counted(outs, progress))
    codecs: dict[str, int] = {}
    for out in outs.values():
        codecs[out.codec] = codecs.get(out.codec, 0) + _nbytes(out)
    return Report(
        path=dst,
        num_tensors=len(outs),
        nbytes=sum(codecs.values()),
        codecs=codecs,
        kept=kept,
        notes=(*model.notes, *notes),
    )


def _check_target(src: Path, dst: Path, to: Format, dtype: str | None, overwrite: bool) -> None:
    if to not in ("hf", "gguf"):
        raise UserError(f"unknown format {to!r}", try_="hf or gguf")
    names = sorted(HELD if to == "hf" else {card.name for card in CODECS.cards(Can.ENCODE)} & TYPE_OF_CODEC.keys())
    if to == "gguf" and dtype == "int8":
        raise UserError("GGUF has no type for int8 rows with one scale each", try_="--dtype q8_0, or --to hf")
    if dtype is not None and dtype not in names:
        raise UserError(f"{dtype!r} cannot be written to {to}", why=f"supported: {', '.join(names)}")
    if to == "gguf" and dst.suffix.lower() != ".gguf":
        raise UserError(f"{dst} does not end in .gguf", why="other programs recognise GGUF files by it")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst} is the model itself", try_="another destination")
    if not dst.parent.is_dir():
        raise UserError(f"there is no directory {dst.parent}")
    if not dst.exists():
        return
    if not overwrite:
        raise UserError(f"{dst} exists", try_="another destination, or --overwrite")
    if dst.is_dir() != (to == "hf"):
        raise UserError(f"{dst} is not a {'directory' if to == 'hf' else 'file'}", try_="another destination")
    if to == "hf" and (others := sorted({p.name for p in dst.iterdir()} - HF_FILES)):
        raise UserError(
            f"{dst} holds other files: {', '.join(others[:5])}",
            why="only a directory that a conversion wrote is replaced",
            try_="another destination",
        )


# What is written ------------------------------------------------------------------------------------------------------


def _choose(
    to: Format,
    dtype: str | None,
    kept: dict[str, str],
    ends: Collection[str],
    name: str,
    codecs: set[str],
    shape: tuple[int, ...],
) -> str:
    """The codec of a matrix that is made of parts in `codecs`; exceptions are noted in `kept`."""
    held = next(iter(codecs)) if len(codecs) == 1 else "f32"
    can_stay = held in (HELD if to == "hf" else TYPE_OF_CODEC)
    if dtype is None:
        return held if can_stay else "f32"
    if dtype == INT8 and name in ends and held != INT8:
        codec = held if can_stay else "bf16"
        kept[name] = f"{codec}: readers of int8 checkpoints expect an embedding or a head in it"
        return codec
    if shape[-1] % _codec(dtype).block:
        kept[name] = f"f16: rows of {shape[-1]} values are no multiple of {_codec(dtype).block}"
        return "f16"
    return dtype


def _ends(model: ModelFile) -> list[str]:
    """The embedding and, where there is one, the head of a checkpoint directory."""
    names = model.family.hf_names(model.config) if model.is_gguf else model.names
    return [names[ours].name for ours in ("embed.embed", "head.head") if ours in names]


def _translations(
    model: ModelFile, lm: LM, to: Format, choose: Callable[[str, set[str], tuple[int, ...]], str]
) -> dict[str, _Out]:
    """Our tensors under the names and in the arrangement of the other format."""
    family, config = model.family, model.config
    names = family.hf_names(config) if to == "hf" else family.gguf_names(config)
    groups: dict[str, list[_Part]] = {}
    for ours, module, leaf in lm.targets():
        is_matrix = isinstance(module, Linear) and not ours.endswith(".bias")
        shape = value_shape(ours, module, leaf)
        part = _Part(source=model.names[ours], target=names[ours], shape=shape, is_matrix=is_matrix)
        groups.setdefault(names[ours].name, []).append(part)
    outs: dict[str, _Out] = {}
    for name, parts in groups.items():
        parts.sort(key=lambda p: p.target.rows or (0, 0))
        if parts[0].is_matrix:
            shape = (sum(p.shape[0] for p in parts), parts[0].shape[1])
            codec = choose(name, {model.held(p.source.name).codec for p in parts}, shape)
            outs[name] = _Out(codec=codec, shape=shape, load=partial(_matrix, model, parts, codec))
    wide = _main_codec(outs)
    for name, parts in groups.items():
        if not parts[0].is_matrix:
            shape = parts[0].target.shape or (sum(p.shape[0] for p in parts), *parts[0].shape[1:])
            codec = "f32" if to == "gguf" or not _fits(model, parts, wide) else wide
            outs[name] = _Out(codec=codec, shape=shape, load=partial(_small, model, parts, shape, codec))
    ordered = {name: outs[name] for name in groups}
    for name, tensor in family.gguf_extra(config).items() if to == "gguf" else ():
        stored = _codec("f32").encode(tensor)
        ordered[name] = _Out(codec="f32", shape=stored.shape, load=partial(_given, stored))
    return ordered


def _main_codec(outs: Mapping[str, _Out]) -> str:
    """The codec of most bytes; int8 leaves open what the other numbers are, and does not count."""
    codecs = {out.codec for out in outs.values()} - {INT8}
    return max(sorted(codecs), key=lambda c: sum(_nbytes(o) for o in outs.values() if o.codec == c))


def _fits(model: ModelFile, parts: list[_Part], codec: str) -> bool:
    """Whether small tensors that a GGUF file widened to f32 are the same numbers in the codec of the matrices."""
    for part in parts:
        stored = model.tensors.stored(part.source.name)
        if stored.codec.name == codec:
            continue
        values = stored.decode(torch.float32).flatten()
        theirs = _mapped(_mapped(values, part.source.load), part.target.save)
        back = _codec(codec).encode(theirs).decode(torch.float32)
        if not torch.equal(_mapped(_mapped(back, part.target.load), part.source.save), values):
            return False
    return True


def _mapped(values: Tensor, f: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Numbers in another parametrisation (see `Source`), rounded once to fp32."""
    return values if f is None else f(values.double()).float()


def _copies(model: ModelFile, lm: LM, choose: Callable[[str, set[str], tuple[int, ...]], str]) -> dict[str, _Out]:
    """The file's own tensors, matrices in the codec that was asked for."""
    matrices = {
        model.names[ours].name
        for ours, module, _ in lm.targets()
        if isinstance(module, Linear) and not ours.endswith(".bias")
    }
    used = {model.names[ours].name for ours, _, _ in lm.targets()}
    outs: dict[str, _Out] = {}
    for name in model.tensors.names():
        if name not in used and not model.is_gguf and not name.startswith(model.family.ignore_under):
            continue  # buffers that no reader needs, perhaps of a type that we do not write
        held = model.held(name)
        codec = choose(name, {held.codec}, held.shape) if name in matrices else held.codec
        outs[name] = _Out(codec=codec, shape=held.shape, load=partial(_copy, model, name, codec))
    return outs


# Reading and re-encoding ----------------------------------------------------------------------------------------------


def _matrix(model: ModelFile, parts: list[_Part], codec: str) -> Stored:
    pieces = []
    for part in parts:
        piece = stored_rows(model.tensors.stored(part.source.name), part.source)
        if part.target.order is not None:
            piece = piece.permute_rows(torch.argsort(part.target.order))
        if part.target.columns is not None:
            piece = stored_columns(piece, torch.argsort(part.target.columns))
        pieces.append(piece)
    return _encoded(pieces, codec)


def _small(model: ModelFile, parts: list[_Part], shape: tuple[int, ...], codec: str) -> Stored:
    values = []
    for part in parts:
        ours = stored_values(model.tensors.stored(part.source.name), part.source, part.shape)
        if part.target.order is not None:
            ours = ours[torch.argsort(part.target.order)]
        values.append(_mapped(ours, part.target.save))
    return _codec(codec).encode(torch.cat(values).reshape(shape))


def _copy(model: ModelFile, name: str, codec: str) -> Stored:
    return _encoded([model.tensors.stored(name)], codec)


def _given(stored: Stored) -> Stored:
    return stored


def _encoded(pieces: list[Stored], codec: str) -> Stored:
    """The pieces one under the other in one codec, a few rows at a time; unchanged bytes where nothing changes."""
    if len(pieces) == 1 and pieces[0].codec.name == codec:
        return pieces[0]
    target, width = _codec(codec), pieces[0].shape[-1]
    rows = sum(piece.shape[0] for piece in pieces)
    data = torch.empty((rows, target.row_bytes(width)), dtype=torch.uint8)
    step, at = max(1, _STEP // (4 * max(1, width))), 0
    for piece in pieces:
        for first in range(0, piece.shape[0], step):
            part = piece.rows(first, min(first + step, piece.shape[0]))
            data[at : at + part.shape[0]] = part.data if part.codec.name == codec else _recode(part, target)
            at += part.shape[0]
    return Stored(target, (rows, width), data)


def _recode(part: Stored, target: Codec) -> Tensor:
    return target.encode(part.decode(torch.float32)).data


def _codec(name: str) -> Codec:
    codec: Codec = CODECS.card(name).make()
    return codec


def _nbytes(out: _Out) -> int:
    return _codec(out.codec).nbytes(out.shape)


# Writing --------------------------------------------------------------------------------------------------------------


def _counted(outs: Mapping[str, _Out], progress: Progress | None) -> Callable[[str], Stored]:
    """Load by name, with progress; errors name the tensor."""
    total, done = sum(map(_nbytes, outs.values())), 0

    def load(name: str) -> Stored:
        nonlocal done
        try:
            stored = outs[name].load()
        except UserError as e:
            raise type(e)(f"tensor {name}: {e.error}", e.why, e.try_) from e
        done += stored.nbytes
        if progress is not None:
            progress(done, total)
        return stored

    return load


def _table(outs: Mapping[str, _Out]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (out.codec, out.shape) for name, out in outs.items()}


def _write_gguf(model: ModelFile, dst: Path, outs: Mapping[str, _Out], load: Callable[[str], Stored]) -> list[str]:
    metadata, notes = gguf_metadata(model, _main_codec(outs))
    write_gguf(dst, metadata, _table(outs), load)
    return notes


def _write_hf(model: ModelFile, dst: Path, outs: Mapping[str, _Out], load: Callable[[str], Stored]) -> list[str]:
    rows = description(_table(outs), _ends(model)[0]) if any(out.codec == INT8 for out in outs.values()) else None
    files, notes = hf_files(model, _main_codec(outs), rows)
    token = secrets.token_hex(4)
    part, old = (dst.with_name(f".{dst.name}.{token}.{end}") for end in ("part", "old"))
    try:
        part.mkdir()
        for name, content in files.items():
            replace_file(part / name, partial(_put, content))
        write_safetensors(part / "model.safetensors", _table(outs), load)
        if dst.exists():
            os.replace(dst, old)
        os.replace(part, dst)
    except OSError as e:
        raise RunError(f"cannot write {dst}: {e.strerror or e}", try_="another place to write to") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if dst.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            os.replace(old, dst)
    return notes


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
