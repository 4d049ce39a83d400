"""The bodies of Ollama's routes, and the options inside of them."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from stretto.core.sampling import MAX_STOPS
from stretto.serve.schema import MAX_TOOLS, Name, Natural, Penalty, Positive, Share
from stretto.text.conversation import MAX_MESSAGES

_MOST, _INT64 = 2**31, 2**63 - 1
Think = bool | Annotated[str, Meta(max_length=64)]
Given = Annotated[dict[str, Any], Meta(max_length=256)]
Tools = Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


class Turn(Struct, kw_only=True, frozen=True):
    """A message. The arguments of its calls are objects; tool_name: whose result it is."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Generating(Struct, kw_only=True, frozen=True):
    """What both generating routes take. stream: unless it is false. keep_alive: how long the
    model stays in memory after this request."""

    model: Name
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Given | None = None
    think: Think | None = None
    keep_alive: str | int | float | None = None
    # Known, and not here.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaChat(Generating, kw_only=True, frozen=True):
    """`/api/chat`. Without messages it asks whether the model is loaded."""

    messages: Annotated[list[Turn], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Tools | None = None


class OllamaGenerate(Generating, kw_only=True, frozen=True):
    """`/api/generate`. raw: the prompt is continued as it stands, without the chat template."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    # Known, and not here.
    suffix: str | None = None
    images: list[Any] | None = None
    template: str | None = None
    context: list[int] | None = None


class OllamaEmbed(Struct, kw_only=True, frozen=True):
    """`/api/embed`. truncate: a text is never cut here."""

    model: Name
    input: Annotated[str, Meta(min_length=1)] | Annotated[list[str], Meta(min_length=1)]
    truncate: bool | None = None
    dimensions: Positive | None = None
    options: Given | None = None
    keep_alive: str | int | float | None = None


class OllamaEmbeddings(Struct, kw_only=True, frozen=True):
    """`/api/embeddings`, before there was `/api/embed`."""

    model: Name
    prompt: Annotated[str, Meta(min_length=1)]
    options: Given | None = None
    keep_alive: str | int | float | None = None


class ShowRequest(Struct, kw_only=True, frozen=True):
    """`/api/show`. name: the older spelling of model."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool | None = None


class PullRequest(Struct, kw_only=True, frozen=True):
    """`/api/pull`. model: an alias that `stretto pull` knows."""

    model: Name | None = None
    name: Name | None = None
    stream: bool | None = None
    insecure: bool | None = None


class Options(Struct, kw_only=True, frozen=True):
    """How tokens are chosen. Whatever else Ollama has here is about the machine or in `MACHINE`."""

    num_predict: Annotated[int, Meta(ge=-_MOST, le=_MOST)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MOST)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-1, le=_INT64)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=1e-3, le=1e3)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_ctx: Natural | None = None
    # Known, and not here, unless they are what changes nothing.
    mirostat: float | None = None
    tfs_z: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None


NEUTRAL = {"mirostat": 0, "tfs_z": 1, "typical_p": 1, "repeat_last_n": -1}
"""Values at which these options do nothing, or what is done here: penalties count the whole text."""
MACHINE = frozenset({
    "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap",
    "use_mlock", "embedding_only", "num_thread", "num_keep", "mirostat_tau", "mirostat_eta", "penalize_newline",
})  # fmt: skip
"""Options that are settings of this server, or belong to one that is refused: accepted, and without effect."""
