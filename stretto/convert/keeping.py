"""What later runs need of a model that was recorded here, as one file (`kept.py` reads it)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stretto.convert.kept import FORMAT, Wanted, files_of, stamp
from stretto.convert.program_file import Blob, pack, program_to_plain
from stretto.core.file_rows import FileRows
from stretto.core.pooling import Pooling
from stretto.kernels.linear.native import Tiles
from stretto.kernels.native.program import Given
from stretto.models.lm import LM
from stretto.runner.recording import LORAS, Recorded
from stretto.runner.sizes import Facts
from stretto.text.plain import vocabulary_to_plain
from stretto.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Extras:
    """What of a model its users are told: see `Kept`."""

    hints: Mapping[str, float] = field(default_factory=dict)
    pooling: Pooling = field(default_factory=Pooling)
    notes: Sequence[str] = ()
    kv_is_approximate: bool = False


def why_not(recorded: Recorded | None, taps: Sequence[int]) -> str | None:
    """Why a model that is running cannot be kept, None if it can be."""
    if recorded is None:
        return "it runs through torch"
    if recorded.program.host_operations:
        return f"Python computes {', '.join(recorded.program.host_operations)}"
    if any(isinstance(buffer, Given) and buffer.name == LORAS for buffer in recorded.program.buffers):
        return "it has room for adapters, which are read with torch"
    return "hidden states are read as tensors" if taps else None


def keep(
    wanted: Wanted,
    lm: LM,
    recorded: Recorded,
    tokenizer: Tokenizer,
    facts: Facts,
    extras: Extras,
) -> bytes:
    """The file."""
    blob, orders = Blob(), dict[tuple[int, ...], int]()
    files = files_of(wanted.path)
    numbers = {path: number for number, (path, _) in enumerate(files)}
    first: dict[int, int] = {}  # tensors of a file begin there

    def piece(place: FileRows) -> list[int | None]:
        order = None if place.order is None else orders.setdefault(place.order, len(orders))
        number = numbers[str(Path(place.path).resolve())]
        first[number] = min(place.start, first.get(number, place.start))
        return [number, place.start, place.row_bytes, place.num_rows, order]

    def tile(own: Tiles) -> dict[str, object]:
        spec = own.spec
        if spec is None or any(str(Path(place.path).resolve()) not in numbers for place in spec.pieces):
            return {"data": blob.add(own.data.numpy().tobytes())}  # what no file holds as rows is kept itself
        pieces = [piece(place) for place in spec.pieces]
        return {"format": spec.format, "d_in": spec.d_in, "d_out": spec.d_out, "pieces": pieces}

    tiles = [tile(own) for own in recorded.tiles]
    text, tokenizer_json = vocabulary_to_plain(tokenizer.vocabulary)
    layout = facts.layout
    kept = recorded.layout
    document = {
        "format": FORMAT,
        "files": [list(asdict(stamp(path, status, first.get(i))).values()) for i, (path, status) in enumerate(files)],
        "program": program_to_plain(recorded.program, blob),
        "tiles": tiles,
        "orders": [list(order) for order in orders],
        "head": list(asdict(recorded.head).values()),
        "layout": {
            "groups": [group.window for group in kept.groups],
            "arrays": [[a.group, a.layers, a.numbers, a.item_bytes, a.by_lanes] for a in kept.arrays],
        },
        "abilities": [[i, name, can.value] for i, name, can in lm.abilities],
        "token_cost": asdict(lm.token_cost),
        "max_rows": recorded.max_rows,
        "context": recorded.context,
        "facts": {
            "context": facts.context,
            "kv": facts.kv,
            "weight_bytes": facts.weight_bytes,
            "vocab_size": facts.vocab_size,
            "d_model": facts.d_model,
            "native": facts.native,
        },
        "text": text,
        "tokenizer": blob.add(tokenizer_json.encode()),
        "hints": dict(extras.hints),
        "pooling": [extras.pooling.kind, extras.pooling.refused],
        "notes": list(extras.notes),
        "kv_is_approximate": extras.kv_is_approximate,
    }
    assert layout.page_bytes == kept.page_bytes and layout.slot_bytes == kept.slot_bytes
    return pack(document, blob)
