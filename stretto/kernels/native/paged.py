"""What operations over pages tell the kernels of them (include/pages.h)."""

from torch import Tensor

from stretto.core.state import PageRef
from stretto.kernels.native.guard import require
from stretto.kernels.native.tape import Tape


def format_code(tape: Tape, ref: PageRef) -> int:
    """The number of its format. Raises NotRecordable for one that the kernels do not know."""
    known = tape.library.enum("PageFormat")
    require(ref.format.name in known, f"reads pages of {ref.format.name}")
    return known.index(ref.format.name)


def scales(ref: PageRef) -> Tensor | None:
    """One per token and head, if its format has some."""
    return ref.sides[0] if ref.sides else None
