"""Log-probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from stretto.engine.request import TokenLogprobs
from stretto.text.tokenizer import Tokenizer


def of_chat(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """`{"content": [...]}`: an entry per token, those that are no text included."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        spelled = tokenizer.token_bytes(token)
        return {"token": spelled.decode(errors="replace"), "logprob": logprob, "bytes": list(spelled)}

    content = []
    for token, one in zip(ids, logprobs, strict=True):
        top = [entry(other, logprob) for other, logprob in one.top.items()]
        content.append({**entry(token, one.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def of_completion(
    tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None], offset: int
) -> tuple[dict[str, Any], int]:
    """Four lists of equal length, and where the next token begins. offset: of the first token in the text. None: of a
    token that has no log-probability."""
    tokens, offsets = [], []
    for token in ids:
        tokens.append(_named(tokenizer, token))
        offsets.append(offset)
        offset += len(tokenizer.token_bytes(token).decode(errors="replace"))
    top = [one and {_named(tokenizer, other): x for other, x in one.top.items()} for one in logprobs]
    found = {
        "tokens": tokens,
        "token_logprobs": [one and one.logprob for one in logprobs],
        "top_logprobs": top,
        "text_offset": offsets,
    }
    return found, offset


def _named(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; part of a character is named by its bytes, so that no two tokens have one name."""
    spelled = tokenizer.token_bytes(token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
