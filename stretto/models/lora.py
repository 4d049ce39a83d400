"""Room for adapters (LoRA) in a model: every matrix of its blocks may get low-rank terms while it runs."""

from collections.abc import Iterator

from stretto.kernels.linear import Linear
from stretto.kernels.lora import LoraSite, LoraTable, Place
from stretto.kernels.native.library import Library
from stretto.models.lm import LM


def matrices(lm: LM) -> Iterator[tuple[str, Linear]]:
    """The matrices of the blocks, by path, each once: embeddings and head are none of them."""
    for path, module in lm.named_modules():
        if isinstance(module, Linear) and path.startswith("blocks.") and ".adapters." not in path:
            yield path, module


def make_room(lm: LM, max_loras: int, max_rank: int, library: Library | None) -> LoraTable:
    """A table for so many adapters of ranks up to `max_rank`, which all matrices read from now on. Segments have their
    names in `LM.targets`. library: see `LoraTable`."""
    places: dict[str, Place] = {}
    first_of = {}
    for path, linear in matrices(lm):
        first_of[path] = len(places)
        for segment, width in linear.segments.items():
            places[f"{path}.{segment}"] = Place(linear.rows(segment).start, width, linear.d_in)
    table = LoraTable(places, max_loras, max_rank, library)
    for path, linear in matrices(lm):
        linear.lora = LoraSite(table, first_of[path], linear.d_in, tuple(linear.segments.values()))
    lm.loras = table
    return table
