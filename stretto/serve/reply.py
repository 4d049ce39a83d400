"""What all answers of the two completion routes begin with, and the extras that a request may ask for."""

import dataclasses
import secrets
import time
from dataclasses import dataclass
from typing import Any

import stretto
from stretto.core.sampling import Sampling
from stretto.llm.results import Chunk
from stretto.llm.sync import LLM
from stretto.serve.schema import Sampled


@dataclass(frozen=True, slots=True)
class Head:
    """id, object, created, model, system_fingerprint; with `echo_params` the sampling as it was resolved, too."""

    id: str
    fields: dict[str, Any]

    @staticmethod
    def make(prefix: str, kind: str, model: str, llm: LLM, params: Sampling | None) -> "Head":
        """prefix: of the id; kind: the value of `object`."""
        fields: dict[str, Any] = {
            "id": new_id(prefix, "-"),
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"stretto-{stretto.__version__}-{llm.backend_choice.name.split(',')[0]}".replace(
                " ", "-"
            ),
        }
        if params is not None:
            fields["params"] = shown(params)
        return Head(fields["id"], fields)


def new_id(prefix: str, between: str = "_") -> str:
    """An id that nobody has."""
    return f"{prefix}{between}{secrets.token_hex(12)}"


def shown(params: Sampling) -> dict[str, Any]:
    """Sampling as JSON."""
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return values | {"logit_bias": {str(k): v for k, v in params.logit_bias.items()}, "stop": list(params.stops)}


def wants_usage(request: Sampled) -> bool:
    """Whether a stream closes with the token counts."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def drafted(chunk: Chunk) -> dict[str, Any]:
    """How many of a chunk's tokens had been drafted, if any: a page can colour them."""
    return {"stretto": {"accepted": chunk.accepted}} if chunk.accepted else {}
