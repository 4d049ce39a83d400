"""Small files: reading them, and writing one whole or not at all."""

import codecs
import json
import os
import secrets
from pathlib import Path
from typing import Any

from stretto.core.errors import ModelFileError, UserError

_MARKS = {  # longest first: one mark starts with another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelFileError otherwise. Bare Infinity and NaN are accepted, as writers emit them."""
    value = _json(path)
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object", why=f"it holds a {type(value).__name__}")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The same for a JSON list."""
    value = _json(path)
    if not isinstance(value, list):
        raise ModelFileError(f"{path} is not a JSON list", why=f"it holds a {type(value).__name__}")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise ModelFileError(f"{path} is not readable JSON", why=str(problem)) from None


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place by renaming: whole or not at all, for its owner alone. Raises OSError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_text(path: Path, what: str) -> str:
    """The text of a file that a user named; UserError, which starts with `what`, if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise UserError(f"{what} {path} cannot be read", why=str(problem), try_="a file that is there") from None
    return as_text(data, f"{what} {path}")


def as_text(data: bytes, where: str) -> str:
    """The text of a file as it is, line ends too; a byte-order mark is not part of it. Raises UserError for no text."""
    other = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if other is not None:
        convert = f"convert it: iconv -f {other} -t UTF-8"
        raise UserError(f"{where} is {other} text", why="only UTF-8 is read", try_=convert)
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        why = f"byte {problem.start} cannot be read"
        raise UserError(f"{where} is not UTF-8 text", why=why, try_="text in UTF-8") from None
