"""GGUF files for tests, written by the gguf package: a copy of another one with changes, in one file or in parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ADD = {str: "add_string", bool: "add_bool", int: "add_uint32", float: "add_float32", list: "add_array"}


def rewritten(
    source: Path,
    to: Path,
    changes: Mapping[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
    parts_of: int = 0,
) -> Path:
    """`source` with other metadata (None takes a key away) and more tensors; `parts_of` tensors a file, if given.

    The path of the (first) file. Matrices must be plain f32.
    """
    reader = gguf.GGUFReader(source)
    found = {k: f.contents() for k, f in reader.fields.items() if not k.startswith(("GGUF.", "general.architecture"))}
    found = {key: value for key, value in (found | dict(changes or {})).items() if value is not None}
    held = reader.fields.get("general.architecture")  # later parts of a split model have none
    arch = found.pop("general.architecture", held.contents() if held is not None else "llama")
    writer = gguf.GGUFWriter(to, arch, split_max_tensors=parts_of)
    for key, value in found.items():
        getattr(writer, _ADD[type(value)])(key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to if not parts_of else min(to.parent.glob(f"{to.stem}-00001-of-*.gguf"))
