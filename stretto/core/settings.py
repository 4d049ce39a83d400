"""`Settings`: how a model is run. One dataclass for the Python API, the command line, the environment and the pages.

Every field is a keyword of `LLM` (`context=4096`), a flag (`--ctx 4096`) and an environment variable (`STRETTO_CTX`). A
flag or a keyword wins over the variable, the variable over the default. Names are checked here, before torch is
imported; what only the model file can tell (`llm/`) is checked before a weight is read.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from stretto.core.card import CHUNKS, CODECS, DRAFTERS, EVICTS, JUDGES, LENGTHS, ORDERS, Registry
from stretto.core.drafter import DrafterConfig
from stretto.core.env import process_variables
from stretto.core.errors import UserError, near
from stretto.core.files import read_text
from stretto.core.judge import Judge
from stretto.core.memory import parse_size
from stretto.core.option import check_fields, option, options_of
from stretto.core.policy import ChunkPolicy, DraftPolicy, EvictPolicy, LengthPolicy, OrderPolicy
from stretto.core.spec import Spec, read_spec

MAX_NODES = 63


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """`NAME:key=value,...` in its parts. nodes: draft tokens per step, None = as many as pay; is_automatic: never more
    than pay, `nodes` being the most."""

    filler: Spec
    nodes: int | None
    is_automatic: bool


def read_draft(spec: str, what: str = "draft") -> DraftSpec | None:
    """The parts of `auto`, `NAME` or `NAME:key=value,...`; None for `none`. Raises UserError, which starts with `what`.

    `nodes` belongs to the policy, all other keys to the drafter. A drafter with `nodes` always drafts so many tokens,
    one without drafts as many as pay.
    """
    if spec == "none":
        return None
    if spec.startswith("none:"):
        raise UserError(f"{what} is {spec!r}", why="without drafts there is nothing to set", try_="none, or auto")
    filler = read_spec(spec, DRAFTERS, what, others=("nodes",), aliases={"none": "ngram", "auto": "ngram"})
    text, is_automatic = filler.others.get("nodes"), spec.partition(":")[0] == "auto"
    if text is None:
        return DraftSpec(filler, None, True)
    nodes = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= nodes <= MAX_NODES:
        why = f"nodes is {text}; a draft has 1 to {MAX_NODES}"
        raise UserError(f"{what} is {spec!r}", why=why, try_="nodes=8")
    return DraftSpec(filler, nodes, is_automatic)


def _check_draft(value: object, what: str) -> None:
    if isinstance(value, str):
        read_draft(value, what)
        return
    pair = value if isinstance(value, tuple) and len(value) == 2 else (None, None)
    if not (isinstance(pair[0], DrafterConfig) and isinstance(pair[1], DraftPolicy)):
        why = "neither a text nor the config of a drafter with a DraftPolicy"
        raise UserError(f"{what} is {value!r}", why=why, try_="draft='ngram'")


def _named(registry: Registry, kind: type) -> Callable[[object, str], None]:
    """A check: an object of this socket, or the name of a filler, with settings."""

    def check(value: object, what: str) -> None:
        if not isinstance(value, kind):
            read_spec(str(value), registry, what)

    return check


def _check_kv(value: object, what: str) -> None:
    """That it is a codec; whether keys can be stored in it is known once torch is there (`page_format`)."""
    names = ("auto", *CODECS.names())
    if value not in names:
        why = "there is no codec of this name"
        raise UserError(f"{what} is {value!r}", why=why, try_=near(str(value), names))


def _check_memory(value: object, what: str) -> None:
    if isinstance(value, str):
        parse_size(value, what)
    elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what} is {value!r}", why="it must be a size or a number of bytes", try_=f"{what} 8GiB")


def _check_prefixes(value: object, what: str) -> None:
    if value != "none":
        _check_memory(value, what)


def _check_template(value: object, what: str) -> None:
    if isinstance(value, Path):
        read_text(value, what)
    elif not isinstance(value, str):
        why = "it must be the text of a template, or the path of a file with one"
        raise UserError(f"{what} is {value!r}", why=why, try_="a Path")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Values:
    """What can be done with settings of any kind."""

    def replace(self, **changes: Any) -> Self:
        """These settings with other values; UserError, with near matches, for a name that is none."""
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"unknown setting {name!r}", why="see docs/SETTINGS.md", try_=near(name, known))
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, for JSON: paths are texts, an object is the name of its class."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Serving(_Values):
    """Who is served, when, and with which drafts."""

    draft: str | tuple[DrafterConfig, DraftPolicy] = option(
        "none, auto (n-grams, as many tokens as pay on this machine, often none), another drafter by its name (as many"
        " as pay, too), or with settings: ngram:max_n=3,nodes=8 always drafts 8",
        default="auto",
        metavar="SPEC",
        kind=str,
        check=_check_draft,
    )
    judge: str | Judge = option(
        "which drafts stay: coupled keeps the text of the seed",
        default="coupled",
        metavar="NAME",
        kind=str,
        check=_named(JUDGES, Judge),
    )
    order: str | OrderPolicy = option(
        "which request is served first: fcfs, shortest, priority:aging=30, fair (between tenants)",
        default="fcfs",
        metavar="SPEC",
        kind=str,
        check=_named(ORDERS, OrderPolicy),
    )
    length: str | LengthPolicy = option(
        "how long an answer is expected to be, for orders that ask: limit, as long as it may be, or history, as long as"
        " earlier ones like it",
        default="limit",
        metavar="SPEC",
        kind=str,
        check=_named(LENGTHS, LengthPolicy),
    )
    chunk: str | ChunkPolicy = option(
        "how much of a prompt is read in a step: aligned, as much as fits, or paced:tbt=0.05, as much as leaves those"
        " that decode so many seconds between tokens",
        default="aligned",
        metavar="SPEC",
        kind=str,
        check=_named(CHUNKS, ChunkPolicy),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(_Serving):
    """How a model is run. Raises UserError for values that cannot be, alone or together.

    From Python, objects may stand for names: the config of a drafter with a `DraftPolicy`, a `Judge`, an `OrderPolicy`,
    a `LengthPolicy`, a `ChunkPolicy`, an `EvictPolicy`; and a text for the path of a chat template.
    """

    dtype: str = option(
        "of weights and activations through torch, and of the cache; float32 is the reference mode, through torch",
        default="bfloat16",
        choices=("bfloat16", "float32"),
    )
    backend: str = option(
        "native kernels, torch, or native where the model and this machine allow it",
        default="auto",
        choices=("auto", "native", "torch"),
    )
    prefill: str = option(
        "exact, to the bit as tokens are decoded, or int8: faster prompts, activations rounded to 8 bits and attention"
        " to 16 (native only)",
        default="exact",
        choices=("exact", "int8"),
    )
    kv: str = option(
        "format of cached keys and values: auto (that of dtype), bf16, f32, or int8, which is approximate",
        default="auto",
        metavar="NAME",
        kind=str,
        check=_check_kv,
    )
    context: int | None = option(
        "longest prompt and answer together (default: what the model was made for, or what fits)",
        default=None,
        flag="ctx",
        aliases=("--max-model-len",),
        low=2,
    )
    max_seqs: int = option(
        "how many requests run at once", default=32, aliases=("--max-num-seqs",), low=1, high=1 << 16
    )
    max_rows: int | None = option(
        "most tokens of a step, of prompts and drafts (default: 128 on native kernels, whose caches hold the"
        " activations of so many; 512 through torch)",
        default=None,
        low=1,
    )
    memory: str | int | None = option(
        "memory for the cache, such as 8GiB (default: 90% of what is free on the machine and in its control group, less"
        " weights and buffers)",
        default=None,
        flag="mem",
        metavar="SIZE",
        kind=str,
        check=_check_memory,
    )
    prefix_cache: str | int = option(
        "memory of the cache that earlier texts may hold, for requests that begin like them: a size (at most half of"
        " the cache is taken), or none",
        default="1GiB",
        metavar="SIZE",
        kind=str,
        check=_check_prefixes,
    )
    evict: str | EvictPolicy = option(
        "which of these texts go first: lru, or marconi:alpha=1, which weighs what they save against what they take",
        default="lru",
        metavar="SPEC",
        kind=str,
        check=_named(EVICTS, EvictPolicy),
    )
    max_loras: int = option(
        "most LoRA adapters at once, with those that are named at the start", default=0, low=0, high=1024
    )
    max_lora_rank: int = option("largest rank of an adapter", default=64, low=1, high=1024)
    threads: int | None = option(
        "threads of the native kernels (default: the cores this process may use)", default=None, low=1, high=1024
    )
    chat_template: str | Path | None = option(
        "file with a Jinja chat template, in place of the model's", default=None, kind=Path, check=_check_template
    )

    def __post_init__(self) -> None:
        check_fields(self)
        through_torch = self.backend == "torch" or self.dtype == "float32"
        if self.dtype == "float32" and self.backend == "native":
            raise UserError(
                "dtype float32 with backend native",
                why="float32 is the reference mode, through torch",
                try_="dtype bfloat16, or backend auto",
            )
        if self.prefill != "exact" and through_torch:
            raise UserError(
                f"prefill {self.prefill} needs the native kernels",
                why=f"dtype {self.dtype} with backend {self.backend} runs through torch",
                try_="prefill exact, or dtype bfloat16 with backend auto",
            )

    @property
    def memory_bytes(self) -> int | None:
        """`memory` as a number."""
        return parse_size(self.memory, "memory") if isinstance(self.memory, str) else self.memory

    @property
    def prefix_bytes(self) -> int:
        """`prefix_cache` as a number; 0 = none."""
        size = self.prefix_cache
        return 0 if size == "none" else parse_size(size, "prefix_cache") if isinstance(size, str) else size

    def read_template(self) -> str | None:
        """The text of `chat_template`."""
        template = self.chat_template
        return read_text(template, "chat_template") if isinstance(template, Path) else template


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, str | int) else type(value).__name__


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and by field where those came from that were given: `--ctx`, `STRETTO_CTX`, `stretto bench`."""

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def changes(self) -> dict[str, dict[str, Any]]:
        """By field, what differs from the defaults and where it came from."""
        found, defaults = {}, Settings()
        for name, source in self.sources.items():
            value = getattr(self.settings, name)
            if value != getattr(defaults, name):
                found[name] = {"value": _plain(value), "from": source}
        return found


def configure(
    flags: Mapping[str, Sequence[str]] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    by: str = "",
    besides: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Settings from flags (by field, as they were written), else environment variables, else `defaults` of the caller
    `by`, else those of `Settings`. An empty variable is none. besides: fields whose variable does not count.

    environ: in place of the variables of the process. Raises UserError that names the flag or the variable.
    """
    flags, variables = flags or {}, process_variables() if environ is None else environ
    values, sources = dict(defaults or {}), dict.fromkeys(defaults or {}, by)
    for one in options_of(Settings):
        text = None if one.field in besides else variables.get(one.variable)
        if one.field in flags:
            texts, source = flags[one.field], one.name
        elif text:
            texts, source = [text], one.variable
        else:
            continue
        values[one.field], sources[one.field] = one.read(texts, source), source
    return Configuration(Settings(**values), sources)
