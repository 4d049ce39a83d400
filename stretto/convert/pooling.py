"""How a model's files want hidden states pooled, where they are made for embeddings.

A folder says so as sentence-transformers writes it: `modules.json` lists what a text goes through, and the folder of
the pooling has a `config.json`. A GGUF file has the key `{architecture}.pooling_type`. Files that say nothing are
pooled by their last token, which is the only one that has seen the whole text.

Vectors always have unit length here, with a `Normalize` among the modules or without: servers of OpenAI's and Ollama's
API give such vectors, and the angle between two of them is the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stretto.convert.model_file import ModelFile
from stretto.core.errors import ModelFileError
from stretto.core.files import read_json, read_json_list
from stretto.core.pooling import Kind, Pooling

_KINDS: Mapping[str, Kind] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
"""Flag of a pooling's config.json -> the value that newer files have for `pooling_mode`."""
_GGUF_TYPES: Mapping[object, Kind] = {1: "mean", 2: "cls", 3: "last"}  # 0: none
_HARMLESS = ("Transformer", "Normalize")


def pooling_of(model: ModelFile) -> Pooling:
    """Raises ModelFileError for files that are damaged."""
    if model.is_gguf:
        given = model.metadata.get(f"{model.metadata['general.architecture']}.pooling_type")
        return Pooling(_GGUF_TYPES.get(given, "last"))
    return _of_folder(model.path)


def _of_folder(path: Path) -> Pooling:
    if not (path / "modules.json").is_file():
        return Pooling()
    listed = read_json_list(path / "modules.json")
    found = Pooling()
    for module in listed:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise ModelFileError(f"{path / 'modules.json'} is damaged", why="a module is an object with a type")
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            found = _of_config(path / str(module.get("path", "")) / "config.json")
        elif kind not in _HARMLESS:
            return Pooling(refused=f"modules.json names a module {kind[:80]}")
    return found


def _of_config(path: Path) -> Pooling:
    config = read_json(path)
    modes = [mode for flag, mode in _FLAGS.items() if config.get(flag) is True]
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named if isinstance(named, list) else modes
    if len(modes) == 1 and modes[0] in _KINDS:
        return Pooling(_KINDS[modes[0]])
    shown: list[Any] = [str(mode)[:80] for mode in modes]
    return Pooling(refused=f"{path.parent.name}/config.json asks for {' and '.join(shown) or 'no pooling'}")
