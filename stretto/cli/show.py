"""`stretto show`: what a model file is, without loading it."""

from dataclasses import dataclass
from typing import Any

from stretto.cli._settings import said
from stretto.cli._terminal import harmless, note, print_json
from stretto.core.env import read_env
from stretto.core.option import argument, option
from stretto.core.settings import configure

EXAMPLES = ("stretto show smollm2", "stretto show model.gguf --json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto show`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    json: bool = option("print one JSON object", default=False)


def run(options: Options) -> int:
    """Open the file, check that every tensor is there, describe it."""
    from stretto.hub.models import resolve

    changes = configure().changes()
    path = resolve(options.model, env=read_env())
    from stretto.convert.model_file import open_model
    from stretto.convert.show import describe

    model = open_model(path)
    found = describe(model) | {"settings": changes}
    for text in model.notes:
        note(text)
    if options.json:
        print_json(found)
        return 0
    width = max(map(len, found))
    for name, value in (found | {"settings": said(changes)}).items():
        print(f"{name.replace('_', ' ').ljust(width)}  {harmless(_shown(value))}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
