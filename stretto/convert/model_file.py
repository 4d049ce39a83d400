"""Opening a model: what it is, by its contents and never by its name, and where each tensor lies.

A path is a GGUF file (its first four bytes say so), or a directory with config.json and safetensors files, or one with
a single GGUF model. What lies beside models (adapters, projectors, other containers) is refused by what it is.
"""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

import stretto.models
from stretto.convert._shared import codec_named
from stretto.convert.gguf_ import MAGIC
from stretto.convert.gguf_split import open_gguf
from stretto.convert.quantized import method_of
from stretto.convert.safetensors_ import open_checkpoint
from stretto.convert.split_names import parts_of
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, UserError
from stretto.core.files import read_json
from stretto.models.family import Family
from stretto.models.lm import LMConfig
from stretto.models.table import Names

GGUF_FREQUENCIES = "rope_freqs.weight"
# First bytes of what people have beside their models -> what it is, and what to do.
_OTHERS: Mapping[bytes, tuple[str, str]] = {
    b"ggml": ("a file of ggml before GGUF", "a GGUF conversion of the model"),
    b"lmgg": ("a file of ggml before GGUF", "a GGUF conversion of the model"),
    b"tjgg": ("a file of ggml before GGUF", "a GGUF conversion of the model"),
    b"fmgg": ("a file of ggml before GGUF", "a GGUF conversion of the model"),
    b"algg": ("a LoRA adapter of ggml before GGUF", "the model that it was made for"),
    b"PK\x03\x04": ("a zip archive, such as torch.save writes", "a safetensors version of the model"),
    b"\x80\x02}q": ("a pickle, such as torch.save wrote", "a safetensors version of the model"),
}
# `general.type` of GGUF files that hold no language model -> what they are.
_NEIGHBOURS = {
    "adapter": "an adapter (LoRA), which changes a model and is none",
    "mmproj": "a projector of a vision or audio model, which stands beside a language model and is none",
    "imatrix": "an importance matrix, which a quantizer reads",
    "vocab": "a vocabulary without a model",
}


class TensorFile(Protocol):
    """A container of named stored tensors."""

    def names(self) -> list[str]: ...
    def stored(self, name: str) -> Stored: ...


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
    checkpoint directory. surplus: tensors that repeat others and are not needed. notes: what its user should know.
    """

    path: Path
    family: Family
    config: LMConfig
    names: Names
    tensors: TensorFile
    held: Callable[[str], Held]
    metadata: Mapping[str, Any]
    is_gguf: bool
    surplus: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def open_model(path: Path) -> ModelFile:
    """Open a GGUF file (of a split model: its first part) or a directory that holds a model.

    Raises UserError if there is nothing at `path`, ModelFileError for anything it cannot run exactly.
    """
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise UserError(f"there is no {path}", try_="the path of a GGUF file or of a checkpoint directory")
    if not path.is_file():
        raise UserError(f"{path} is not a file", try_="the path of a GGUF file or of a checkpoint directory")
    first = _first_bytes(path)
    if first == MAGIC:
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        raise ModelFileError(
            f"{path} is one file of a checkpoint", why="config.json beside it says what it is", try_=f"{path.parent}"
        )
    what, instead = _OTHERS.get(first, ("neither a GGUF file nor a checkpoint directory", None))
    raise ModelFileError(
        f"{path} is {what}",
        why="models are GGUF files, or directories with config.json and safetensors files; pickles are never loaded",
        try_=instead,
    )


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def _open_directory(path: Path) -> ModelFile:
    if (path / "config.json").is_file():
        return _open_hf(path)
    models = [p for p in sorted(path.iterdir()) if p.is_file() and p.suffix.lower() == ".gguf"]
    models = [p for p in models if (parts := parts_of(p)) is None or parts.number == 1]
    if len(models) == 1:
        return _open_gguf(models[0])
    if models:
        raise ModelFileError(
            f"{path} holds {len(models)} GGUF models", why="one of them must be chosen", try_=f"{models[0]}"
        )
    if (path / "adapter_config.json").is_file():
        raise ModelFileError(f"{path} is {_NEIGHBOURS['adapter']}", try_="the model that it was made for")
    raise ModelFileError(
        f"{path} has no config.json", why="a checkpoint directory is recognised by it", try_="a directory that has one"
    )


# Checkpoint directories -----------------------------------------------------------------------------------------------


def _open_hf(path: Path) -> ModelFile:
    where = str(path / "config.json")
    config = read_json(path / "config.json")
    family = _family(lambda f: f.hf, _announced(config), where)
    quantized = method_of(config, where)
    config.pop("quantization_config", None)
    plain = open_checkpoint(path)
    file = plain if quantized is None else quantized.read(plain)

    def held(name: str) -> Held:
        codec, shape = file.held(name)
        return Held(codec=codec, shape=shape, nbytes=codec_named(codec).nbytes(shape))

    ours = family.read_hf(config)
    unused = [start for start in family.ignore_under if any(name.startswith(start) for name in file.names())]
    notes = (f"{path}: tensors under {' and '.join(unused)} are not used",) if unused else ()
    model = ModelFile(path, family, ours, family.hf_names(ours), file, held, {}, is_gguf=False, notes=notes)
    return _with_head(model)


def _with_head(model: ModelFile) -> ModelFile:
    """The head of a model whose config ties it to the embedding, by what the file holds.

    One of the two tensors is the matrix of both; two equal ones are the same matrix twice; of two different ones each
    is what its name says (as transformers does), which the config denies.
    """
    if not model.config.tie_embeddings:
        return model
    own = replace(model.config, tie_embeddings=False)
    names = model.family.hf_names(own)
    embed, head = names["embed.embed"].name, names["head.head"].name
    present = set(model.tensors.names())
    if head not in present:
        return model
    if embed not in present:
        return replace(model, names={**model.names, "embed.embed": replace(names["embed.embed"], name=head)})
    if _are_equal(model, embed, head):
        return replace(model, surplus=model.surplus | {head})
    note = f"{model.path}: config.json ties the head to the embedding, but {head} has values of its own and is used"
    return replace(model, config=own, names=names, notes=(*model.notes, note))


def _are_equal(model: ModelFile, one: str, other: str) -> bool:
    """Whether two tensors hold the same values, in whatever codec."""
    if model.held(one).shape != model.held(other).shape:
        return False
    a, b = model.tensors.stored(one), model.tensors.stored(other)
    if a.codec.name == b.codec.name:
        return a.data.data_ptr() == b.data.data_ptr() or torch.equal(a.data, b.data)
    step = 4096  # rows: two matrices of a vocabulary are never decoded whole
    return all(
        torch.equal(*(p.rows(first, min(first + step, a.shape[0])).decode(torch.float32) for p in (a, b)))
        for first in range(0, a.shape[0], step)
    )


def _announced(config: Mapping[str, Any]) -> object:
    """`architectures[0]`; a file without it says the same by `model_type`."""
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return names[0]
    spelled = f"{config.get('model_type')}ForCausalLM".replace("_", "").lower()
    return next((n for f in families() for n in f.hf if n.lower() == spelled), config.get("model_type"))


# GGUF files -----------------------------------------------------------------------------------------------------------


def _open_gguf(path: Path) -> ModelFile:
    file = open_gguf(path)
    _refuse_neighbours(path, file.metadata, file.names())
    table = {name: Held(codec=i.codec, shape=i.shape, nbytes=i.nbytes) for name, i in file.tensors.items()}
    shapes = {name: info.shape for name, info in table.items()}
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise ModelFileError(f"{path} has no matrix token_embd.weight", why="every language model needs embeddings")
    family = _family(lambda f: f.gguf, file.metadata.get("general.architecture"), str(path))
    known: dict[str, Any] = {**file.metadata, "stretto.tensors": shapes}
    if GGUF_FREQUENCIES in shapes:
        known["stretto.rope_divisors"] = file.stored(GGUF_FREQUENCIES).decode(torch.float32).flatten().tolist()
    ours = family.read_gguf(known)
    names = family.gguf_names(ours)
    blocks = range(len(ours.layers), known[f"{known['general.architecture']}.block_count"])
    ahead = frozenset(name for name in shapes if name.startswith(tuple(f"blk.{i}." for i in blocks)))
    notes = (f"{path}: {len(blocks)} layers that predict further tokens are not used",) if ahead else ()
    return ModelFile(
        path, family, ours, names, file, table.__getitem__, file.metadata, is_gguf=True, surplus=ahead, notes=notes
    )


def _refuse_neighbours(path: Path, metadata: Mapping[str, Any], tensors: Sequence[str]) -> None:
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    if kind is None and architecture == "clip":
        kind = "mmproj"
    if kind is None and any(re.search(r"\.lora_[ab]$", name) for name in tensors):
        kind = "adapter"
    if kind is None and not tensors and "tokenizer.ggml.tokens" in metadata:
        kind = "vocab"
    if kind in (None, "model"):
        return
    what = _NEIGHBOURS.get(kind, f"of the kind {kind!r} (general.type), and no language model")
    raise ModelFileError(f"{path} is {what}", why=f"its architecture is {architecture!r}", try_="the model itself")


# Families -------------------------------------------------------------------------------------------------------------


def families() -> list[Family]:
    """Every family file of models/."""
    found = []
    for module in pkgutil.iter_modules(stretto.models.__path__):
        family = getattr(importlib.import_module(f"stretto.models.{module.name}"), "FAMILY", None)
        found += [family] if family is not None else []
    return found


def _family(names: Callable[[Family], Iterable[str]], announced: object, where: str) -> Family:
    known = {name: family for family in families() for name in names(family)}
    if announced in known:
        return known[str(announced)]
    near = difflib.get_close_matches(str(announced), known, n=2)
    raise ModelFileError(
        f"{where}: architecture {announced!r} is not supported",
        why=f"supported: {', '.join(sorted(known))}",
        try_=f"did you mean a model of {' or '.join(near)}?" if near else None,
    )
