"""`Adapters`: the LoRA adapters of an `LLM` by name, and from which files they come."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stretto.core.errors import UserError
from stretto.core.settings import Settings
from stretto.engine.engine import Engine
from stretto.llm.admission import Admission

if TYPE_CHECKING:
    from stretto.convert.model_file import ModelFile
    from stretto.kernels.lora import Factors


class Adapters:
    """`llm.loras`: loading and unloading while the model runs. open_file: of the model, for its names of matrices.
    first: adapters that are loaded at once, by name.

    A folder that PEFT wrote, or a GGUF file of llama.cpp's. There is room for `max_loras` of them (a setting, 0 as a
    rule), of ranks up to `max_lora_rank`.
    """

    def __init__(
        self, engine: Engine, open_file: "Callable[[], ModelFile]", first: Mapping[str, str | Path] | None = None
    ) -> None:
        self._loras, self._open_file = engine.loras, open_file
        for name, path in (first or {}).items():
            self.load(name, path)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests may ask for."""
        return self._loras.names

    def load(self, name: str, path: str | Path) -> None:
        """Load an adapter, in place of one of the same name: requests that run with that one finish with it. Raises
        UserError if there is no room, ModelFileError for a file that cannot be used."""
        self.install(name, self.read(name, path))

    def unload(self, name: str) -> int:
        """Forget an adapter at once; returns how many requests still run with it. Its memory is free when the last of
        them has ended. Raises UserError if there is none."""
        return self._loras.unload(name)

    def read(self, name: str, path: str | Path) -> "Mapping[str, Factors]":
        """The first half of `load`, in any thread: the files."""
        if not name:
            raise UserError("the name of an adapter is empty", try_="a name")
        if self._loras.table is None:
            why = "the model was loaded without room for adapters (max_loras is 0)"
            raise UserError(f"the adapter {name!r} cannot be loaded", why=why, try_="max_loras=4, or --max-loras 4")
        from stretto.convert.lora import read_lora  # with torch

        return read_lora(Path(path), self._open_file(), self._loras.table)

    def install(self, name: str, adapter: "Mapping[str, Factors]") -> None:
        """The other half, in the engine's thread, between two steps."""
        self._loras.load(name, adapter)


def with_room(settings: Settings, loras: Collection[str]) -> Settings:
    """These settings, with room for at least so many adapters."""
    return settings if len(loras) <= settings.max_loras else settings.replace(max_loras=len(loras))


class AsyncAdapters:
    """The same for an `AsyncLLM`, in its threads."""

    def __init__(self, adapters: Adapters, admission: Admission) -> None:
        self._adapters, self._admission = adapters, admission

    @property
    def names(self) -> tuple[str, ...]:
        """As `Adapters.names`."""
        return self._adapters.names

    async def load(self, name: str, path: str | Path) -> None:
        """As `Adapters.load`: files are read beside the engine, which takes the adapter in between two of its steps."""
        adapter = await asyncio.wrap_future(self._admission.offload(lambda: self._adapters.read(name, path)))
        await asyncio.wrap_future(self._admission.ask(lambda watch: self._adapters.install(name, adapter)))

    async def unload(self, name: str) -> int:
        """As `Adapters.unload`."""
        return await asyncio.wrap_future(self._admission.ask(lambda watch: self._adapters.unload(name)))
