"""What `stretto run` can be told; its chat reads it too."""

from dataclasses import dataclass
from pathlib import Path

from stretto.cli._flags import group
from stretto.cli._loras import check_path
from stretto.cli._settings import settings
from stretto.core.option import argument, option
from stretto.core.sampling import Sampling
from stretto.core.settings import Configuration

LORA = "lora"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto run`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    prompt: str | None = argument(
        "what to answer; the text of a file or pipe on standard input comes before it (- is standard input alone);"
        " without it, a chat in a terminal, else standard input",
        default=None,
    )
    system: str | None = option("system message of the conversation", default=None)
    raw: bool = option("continue the prompt as it is, without a chat template", default=False)
    lora: Path | None = option(
        "an adapter (LoRA) to answer with: a folder of PEFT's, or a GGUF file", default=None, metavar="PATH"
    )
    no_stdin: bool = option(
        "leave standard input alone: in a `while read` loop, beside a pipe that stays open", default=False
    )
    stats: bool = option("close with a table of speeds and draft counters", default=False)
    show_draft: bool = option("mark accepted draft tokens, and rejected ones struck through", default=False)
    json: bool = option("print one JSON object in place of the text", default=False)
    load_prefix: Path | None = option(
        "a file of --save-prefix: a prompt that begins with its text need not compute it again", default=None
    )
    save_prefix: Path | None = option(
        "when the prompt is answered, write what texts that begin with it need not compute to this file", default=None
    )
    sampling: Sampling = group("how tokens are chosen", Sampling)
    configuration: Configuration = settings(max_seqs=1)

    @property
    def loras(self) -> dict[str, Path]:
        """The adapter by its name in this process."""
        return {} if self.lora is None else {LORA: check_path(str(self.lora))}

    @property
    def lora_name(self) -> str | None:
        """What requests ask for."""
        return None if self.lora is None else LORA
