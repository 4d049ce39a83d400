"""`stretto convert`: a checkpoint directory becomes a GGUF file and back, or either gets another number format."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stretto.cli._terminal import note, print_json, progress
from stretto.core.card import CODECS
from stretto.core.env import read_env
from stretto.core.errors import UserError, near
from stretto.core.option import argument, option

if TYPE_CHECKING:
    from stretto.convert.convert import Format

EXAMPLES = (
    "stretto convert smollm2 smollm2-hf --to hf",
    "stretto convert ./checkpoint model.gguf --to gguf --dtype q8_0",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto convert`."""

    src: str = argument("an alias, a .gguf file or a checkpoint directory")
    dst: Path = argument("the file or directory to write")
    to: str = option("a checkpoint directory, or a GGUF file", choices=("hf", "gguf"))
    dtype: str | None = option(
        "number format of the matrices: f32, f16, bf16; int8 in hf; q8_0, q4_0, q4_1 in GGUF (default: as they are)",
        default=None,
        metavar="NAME",
    )
    overwrite: bool = option("replace what is at DST", default=False)
    json: bool = option("print one JSON object", default=False)


def run(options: Options) -> int:
    """Convert; DST appears when it is complete."""
    if options.dtype is not None and options.dtype not in CODECS.names():
        raise UserError(f"unknown --dtype {options.dtype!r}", try_=near(options.dtype, CODECS.names()))
    if options.dst.exists() and not options.overwrite:
        raise UserError(f"{options.dst} exists", try_="another destination, or --overwrite")
    from stretto.hub.models import resolve

    src = resolve(options.src, env=read_env())
    from stretto.convert.convert import convert

    show = progress(f"writing {options.dst}")
    report = convert(
        src,
        options.dst,
        cast("Format", options.to),
        options.dtype,
        overwrite=options.overwrite,
        progress=show,
    )
    for name, reason in report.kept.items():
        note(f"{name} is {reason}")
    for line in report.notes:
        note(line)
    if options.json:
        print_json({**asdict(report), "path": str(report.path)})
    else:
        codecs = ", ".join(f"{name} {nbytes / 1e6:,.1f} MB" for name, nbytes in report.codecs.items())
        print(f"{report.path}: {report.num_tensors} tensors, {report.nbytes / 1e6:,.1f} MB ({codecs})")
    return 0
