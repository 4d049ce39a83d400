"""The settings of a model run in the options of a verb, and as a line."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from stretto.cli._flags import Group, Texts
from stretto.core.option import Option, options_of
from stretto.core.settings import Configuration, Settings, configure


def settings(**defaults: Any) -> Any:
    """A field that holds a `Configuration`: a flag for each of the `Settings`. defaults: of this verb."""
    base = Settings(**defaults)
    named = {field.name: field for field in dataclasses.fields(Settings)}
    options = [Option(named[one.field], getattr(base, one.field)) for one in options_of(Settings)]

    def build(texts: Texts, command: str) -> Configuration:
        return configure(texts, defaults=defaults, by=command)

    title = f"settings (in the environment: {options[0].variable} for {options[0].name}, and so on)"
    return dataclasses.field(metadata={"group": Group(title, options, build)})


def said(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of `Configuration.changes` in a line."""
    return ", ".join(f"{name} {found['value']} ({found['from']})" for name, found in changes.items()) or "none"
