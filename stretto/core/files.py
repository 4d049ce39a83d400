"""Reading small files of a model."""

import json
from pathlib import Path
from typing import Any

from stretto.core.errors import ModelFileError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelFileError otherwise. Bare Infinity and NaN are accepted, as writers emit them."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise ModelFileError(f"{path} is not readable JSON", why=str(problem)) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object", why=f"it holds a {type(value).__name__}")
    return value
