"""What a request will take, from its body alone. The router reads no template and no tokenizer: it estimates.

Text that begins alike in the model's view begins alike here, too: the fields that templates write first come first. A
body that cannot be read is sent on without an estimate, for a replica to refuse.
"""

from typing import Any

import msgspec

from stretto.serve.router.index import BYTES, chain
from stretto.serve.router.policy import Ask

OUTPUT = 256  # tokens of an answer without a limit, or with a high one
_TEXTS = ("tools", "system", "instructions", "messages", "input", "prompt", "content")


class _Options(msgspec.Struct):
    """Of Ollama's bodies."""

    num_predict: Any = None


class _Body(msgspec.Struct):
    tools: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    content: msgspec.Raw = msgspec.Raw(b"")
    options: _Options = msgspec.field(default_factory=_Options)
    cache_salt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None


def ask_of(body: bytes, tenant: str) -> Ask:
    """The estimate for a body. Only texts of the same tenant and salt have blocks in common, as in the prefix cache."""
    try:
        read = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, RecursionError):
        return Ask()
    text = b"".join(bytes(getattr(read, name)) for name in _TEXTS)
    limits = (read.max_completion_tokens, read.max_tokens, read.max_output_tokens, read.options.num_predict)
    limit = next((one for one in limits if isinstance(one, int) and one > 0), OUTPUT)
    blocks = chain(text, f"{tenant}/{read.cache_salt!r}")
    return Ask(blocks, prompt=len(text) // BYTES, output=min(limit, OUTPUT))
