"""The folders that PEFT writes: low-rank terms by the path of a module. What is not computed is refused by name."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stretto.convert._shared import quoted
from stretto.convert.safetensors_ import SafetensorsFile
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, UserError
from stretto.core.files import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.-]+")
_REFUSED = {
    "use_dora": "weight-decomposed adapters (DoRA) are not computed",
    "lora_bias": "biases of adapters are not computed",
    "modules_to_save": "it replaces whole parts of the model",
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "it changes parameters that are no matrices of their own",
    "alora_invocation_tokens": "it acts from some token of the text on (activated LoRA)",
    "use_qalora": "it pools its inputs (QA-LoRA)",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "arrow_config": "it chooses among several adapters (Arrow)",
    "kasa_config": "its terms are scaled by singular values (KaSA)",
    "monteclora_config": "its terms are drawn (MonteCLoRA)",
    "megatron_config": "it belongs to layers of Megatron",
}
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the model's own weights as they are; others (pissa, olora, ...) do not."""


@dataclass(frozen=True, slots=True)
class Term:
    """What a file adds to one of the model's matrices: scale * b a. a: [r, in]; b: [out, r]."""

    a: Stored
    b: Stored
    scale: float


@dataclass(frozen=True, slots=True)
class Scales:
    """How a config says what ranks and factors are."""

    rank: int
    alpha: float
    by_root: bool
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]

    def of(self, path: str, where: str) -> tuple[int, float]:
        """Rank and factor of the module at `path`."""
        rank = _number(_find(self.ranks, path, self.rank), "rank_pattern", where)
        alpha = _number(_find(self.alphas, path, self.alpha), "alpha_pattern", where)
        return int(rank), alpha / (math.sqrt(rank) if self.by_root else rank)


class Targets:
    """Which modules an adapter says that it changes: `target_modules`, and the layers it is limited to.

    A regular expression is not run: it is a program of somebody else's that may never end, and the tensors say the
    same.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        names, layers = config.get("target_modules"), config.get("layers_to_transform")
        self._names = names if isinstance(names, list) else None
        self._layers = [layers] if isinstance(layers, int) else layers
        self._is_whole = not config.get("exclude_modules") and not config.get("layers_pattern")
        is_good = names is None or isinstance(names, str) or all(isinstance(name, str) for name in names)
        if not is_good or not (self._layers is None or isinstance(self._layers, list)):
            raise ModelFileError(f"{where}: target_modules or layers_to_transform is no list", try_="write it anew")

    def may_have(self, path: str) -> bool:
        """Whether a module is among them."""
        numbers = [int(part) for part in path.split(".") if part.isdecimal()]
        if self._layers is not None and numbers[:1] and numbers[0] not in self._layers:
            return False
        return self._names is None or any(path == name or path.endswith(f".{name}") for name in self._names)

    def must_have(self, path: str) -> bool:
        """Whether a module that the model has must have its tensors."""
        return self._names is not None and self._is_whole and self.may_have(path)


def read_peft(folder: Path) -> tuple[dict[str, Term], Targets]:
    """The terms of a folder by the path of the module that they are added to, and what its config says of these.

    Raises ModelFileError for damage and for everything that is not computed exactly, UserError if it is no adapter.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}", why="a folder with an adapter is recognised by it")
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    scales, targets = _scales(config, where), Targets(config, where)
    if not (folder / TENSORS).is_file():
        why = (
            "pickled adapters (.bin) can run code and are not read" if (folder / "adapter_model.bin").exists() else None
        )
        raise ModelFileError(f"{folder} has no {TENSORS}", why=why, try_="a safetensors version of the adapter")
    file = SafetensorsFile(folder / TENSORS)
    sides: dict[str, dict[str, str]] = {}
    for name in file.names():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ModelFileError(f"{file.path} holds {quoted(name)}", why=_what_else(name))
        if match["side"] in sides.setdefault(match["path"], {}):
            raise ModelFileError(f"{file.path} holds the tensors of {quoted(match['path'])} twice")
        sides[match["path"]][match["side"]] = name
    terms = {}
    for path, own in sides.items():
        if len(own) < 2:
            raise ModelFileError(f"{file.path} lacks a tensor of {quoted(path)}", why="A and B come in pairs")
        if not targets.may_have(path):
            raise ModelFileError(f"{file.path} holds {quoted(path)}", why=f"{where} does not name it as a target")
        rank, scale = scales.of(path, where)
        (_, a), (_, b) = file.held(own["A"]), file.held(own["B"])
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise ModelFileError(f"{file.path}: {quoted(path)} has the shapes {a} and {b}", why=f"its rank is {rank}")
        terms[path] = Term(file.stored(own["A"]), file.stored(own["B"]), scale)
    return terms, targets


def _scales(config: Mapping[str, Any], where: str) -> Scales:
    """Raises ModelFileError for everything in the config that is not computed."""
    if str(config.get("peft_type")).upper() != "LORA":
        raise ModelFileError(f"{where}: peft_type is {config.get('peft_type')!r}", why="LORA can be read")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise ModelFileError(f"{where}: {key} is {str(config[key])[:80]}", why=why)
    if config.get("bias", "none") != "none":
        raise ModelFileError(f"{where}: bias is {config['bias']!r}", why="biases of adapters are not computed")
    start = config.get("init_lora_weights")
    if start not in _HARMLESS_STARTS:
        why = "adapters that begin like this change the model's own weights, which the file does not hold"
        raise ModelFileError(f"{where}: init_lora_weights is {str(start)[:80]!r}", why=why)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for name, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        bad = [key for key in patterns if not _PATTERN.fullmatch(key)] if isinstance(patterns, dict) else [name]
        if bad:
            why = "names and paths of modules can be read; regular expressions are not run"
            raise ModelFileError(f"{where}: {name} has {quoted(str(bad[0]))}", why=why)
    rank = _number(config.get("r"), "r", where)
    alpha = _number(config.get("lora_alpha"), "lora_alpha", where)
    return Scales(int(rank), alpha, bool(config.get("use_rslora")), ranks, alphas)


def _number(value: object, key: str, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (key in ("r", "rank_pattern") and (value != int(value) or value < 1)):  # type: ignore[call-overload, operator]
        raise ModelFileError(
            f"{where}: {key} is {value!r}", why="it must be a finite number, and a rank a positive one"
        )
    return value  # type: ignore[return-value]


def _find(patterns: Mapping[str, Any], path: str, default: float) -> Any:
    """Of the first pattern that names the module, as PEFT takes it; `^` stands for the beginning of a path."""
    for key, value in patterns.items():
        if path == key.removeprefix("^") or (not key.startswith("^") and path.endswith(f".{key}")):
            return value
    return default


def _what_else(name: str) -> str:
    for mark, what in (
        ("lora_embedding", "adapters of embeddings are not computed"),
        ("lora_magnitude", _REFUSED["use_dora"]),
        ("lora_", "it is a part of an adapter that is not computed"),
    ):
        if mark in name:
            return what
    return "it is no low-rank term of a matrix: whole parts of a model are not replaced"
