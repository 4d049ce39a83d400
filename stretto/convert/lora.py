"""Adapters (LoRA) from files, fitted to a model that is loaded: folders that PEFT writes, and GGUF files of llama.cpp.

    adapter_config.json             rank, alpha and which matrices (`peft.py`)
    adapter_model.safetensors       base_model.model.{path}.lora_A.weight [r, in], .lora_B.weight [out, r]

    general.type = adapter          blk.0.attn_q.weight.lora_a [r, in], .lora_b [out, r], adapter.lora.alpha

The tables of the family say which matrix is which of ours, for models of either format: rows that a format stores in
another order are moved in B, columns in A, and a matrix that is one there and several here is cut.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stretto.convert._shared import quoted
from stretto.convert.gguf_ import MAGIC
from stretto.convert.gguf_split import open_gguf
from stretto.convert.model_file import ModelFile
from stretto.convert.peft import Term, read_peft
from stretto.core.errors import ModelFileError, UserError
from stretto.kernels.lora import Factors, LoraTable
from stretto.models.table import Names, Source

_END = ".weight"


def read_lora(path: Path, model: ModelFile, table: LoraTable) -> dict[str, Factors]:
    """The adapter at `path`, by the segments of `table`, in fp32.

    Raises UserError if nothing is there or a rank is larger than there is room for, ModelFileError for what is damaged,
    asks for something that is not computed, or does not fit the model.
    """
    if path.is_dir():
        terms, targets = read_peft(path)
        return _fit(terms, model.family.hf_names(model.config), table, path, targets.must_have)
    if _is_gguf(path):
        terms = _read_gguf(path, model)
        return _fit(terms, model.family.gguf_names(model.config), table, path, lambda name: False)
    raise UserError(
        f"{path} is no adapter",
        why="adapters are folders with adapter_config.json and adapter_model.safetensors, or GGUF files",
        try_="the folder of an adapter" if path.exists() else "a path that is there",
    )


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_gguf(path: Path, model: ModelFile) -> dict[str, Term]:
    file = open_gguf(path)
    kind, form = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if kind != "adapter" or form != "lora":
        why = f"general.type is {kind!r}, adapter.type {form!r}; adapters of the type lora can be read"
        raise ModelFileError(f"{path} is no adapter", why=why)
    architecture = file.metadata.get("general.architecture")
    if architecture not in model.family.gguf:
        why = f"it was made for {architecture!r}, and the model is {' or '.join(model.family.gguf)}"
        raise ModelFileError(f"{path} does not fit {model.path}", why=why)
    for key in file.metadata:
        if key.startswith("adapter.") and key not in ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name",
                                                      "adapter.lora.prompt_prefix"):  # fmt: skip
            raise ModelFileError(f"{path}: {quoted(key)} is not supported", why="it may change what is computed")
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelFileError(f"{path}: adapter.lora.alpha is {alpha!r}", why="it must be a finite number")
    terms, names = {}, set(file.names())
    for name in sorted(names):
        theirs, _, side = name.rpartition(".lora_")
        if side not in ("a", "b") or not theirs.endswith(_END):
            raise ModelFileError(f"{path} holds {quoted(name)}", why="it is no low-rank term of a matrix")
        if not {f"{theirs}.lora_a", f"{theirs}.lora_b"} <= names:
            raise ModelFileError(f"{path} lacks a tensor of {quoted(theirs)}", why="A and B come in pairs")
        if side == "a":
            a, b = file.stored(name), file.stored(f"{theirs}.lora_b")
            if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] < 1:
                raise ModelFileError(f"{path}: {quoted(theirs)} has the shapes {a.shape} and {b.shape}")
            scale = alpha / a.shape[0] if alpha else 1.0  # 0 stands for none
            terms[theirs.removesuffix(_END)] = Term(a, b, scale)
    return terms


def _fit(
    terms: Mapping[str, Term], names: Names, table: LoraTable, path: Path, must_have: Callable[[str], bool]
) -> dict[str, Factors]:
    """The terms as ours. names: which matrix there is which segment; must_have: whether one of these may not lack its
    term."""
    parts: dict[str, list[tuple[str, Source]]] = {}
    for ours in table.places:
        source = names.get(ours)
        if source is not None:
            parts.setdefault(source.name.removesuffix(_END), []).append((ours, source))
    by_layer = {_in_layers(theirs): theirs for theirs in parts}
    given, terms = terms, {by_layer.get(_in_layers(theirs), theirs): term for theirs, term in terms.items()}
    if len(terms) < len(given):
        raise ModelFileError(f"{path} changes a matrix twice", why="under two names of one layer")
    for theirs in terms:
        if theirs not in parts:
            why = "adapters of matrices in the layers of the model are computed, and it has no such one"
            raise ModelFileError(f"{path} changes {quoted(theirs)}", why=why)
    lacking = [theirs for theirs in parts if theirs not in terms and must_have(theirs)]
    if lacking or not terms:
        what = quoted(lacking[0]) if lacking else "any matrix"
        raise ModelFileError(f"{path} lacks the tensors of {what}", why="its config names what it changes")
    found: dict[str, Factors] = {}
    for theirs, term in terms.items():
        _check_shapes(theirs, term, parts[theirs], table, path)
        a, b = (_finite(side.decode(torch.float32), theirs, path) for side in (term.a, term.b))
        for ours, source in parts[theirs]:
            found[ours] = _cut(a, b, term.scale, source)
    return found


def _in_layers(path: str) -> str:
    """What stands behind the list of layers: in memory, transformers gives the parts before it other names than in the
    file of some models, and PEFT writes those of memory."""
    return path.partition("layers.")[2] or path


def _check_shapes(theirs: str, term: Term, parts: list[tuple[str, Source]], table: LoraTable, path: Path) -> None:
    rank, d_in = term.a.shape
    if rank > table.max_rank:
        raise UserError(
            f"{path} has the rank {rank}",
            why=f"there is room for ranks up to {table.max_rank}",
            try_=f"--max-lora-rank {rank}",
        )
    sources = [source for _, source in parts]
    if any(source.load is not None or source.shape is not None for source in sources):
        raise ModelFileError(f"{path} changes {quoted(theirs)}", why="it is held in another form than the file's")
    places = [table.places[ours] for ours, _ in parts]
    d_out = sum(place.d_out for place in places)
    if d_in != places[0].d_in or term.b.shape[0] != d_out:
        why = f"the matrix of the model is {d_out} x {places[0].d_in}, its term {term.b.shape[0]} x {d_in}"
        raise ModelFileError(f"{path} does not fit: {quoted(theirs)}", why=why)


def _cut(a: Tensor, b: Tensor, scale: float, source: Source) -> Factors:
    """The part of a term that is one segment of ours, in our order."""
    if source.rows is not None:
        b = b[source.rows[0] : sum(source.rows)]
    if source.order is not None:
        b = b[source.order]
    if source.columns is not None:
        a = a[:, source.columns]
    return Factors(a.contiguous(), b.T.contiguous(), scale)


def _finite(values: Tensor, theirs: str, path: Path) -> Tensor:
    if not values.isfinite().all():
        raise ModelFileError(f"{path}: the term of {quoted(theirs)} has numbers that are not finite")
    return values
