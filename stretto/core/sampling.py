"""`Sampling` and `Noise`: how tokens are chosen, from which random numbers, and when a text ends. No torch here: the
command line validates before loading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from stretto.core.errors import UserError

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-3, 1e3),
}
_HINTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_DEFAULTS: Mapping[str, float] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip
MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS, MAX_BIASES = 16, 256, 20, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """OpenAI's field names, plus `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`.

    A field left at None takes the model's own generation hint, else OpenAI's default. Order of operations:
    logit_bias, penalties, temperature, top_k, top_p, min_p, draw. Raises UserError for anything out of range.
    """

    max_tokens: int | None = None  # None: as many as the context holds
    min_tokens: int = 0  # end-of-text tokens are not sampled before this many
    temperature: float | None = None  # 0 = greedy: the argmax, lowest id on a tie
    top_p: float | None = None  # keep the most likely tokens that make up this mass; 1 = all
    top_k: int | None = None  # keep the k most likely tokens; 0 or -1 = all
    min_p: float | None = None  # drop tokens less likely than min_p * the most likely one
    presence_penalty: float = 0.0  # subtracted from the logit of every token generated so far
    frequency_penalty: float = 0.0  # the same, times how often it was generated
    repetition_penalty: float | None = None  # divides (multiplies) positive (negative) logits of prompt and output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int | None = None  # None: a random one, reported in the result
    stop: str | Sequence[str] = ()  # the text ends before the first of these
    stop_token_ids: Sequence[int] = ()  # the text ends at these tokens
    ignore_eos: bool = False  # end-of-text tokens do not end the text
    logprobs: int | None = None  # with every token the log-probabilities of this many likeliest ones; None = off

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, low, high)
        if self.top_p == 0:
            raise UserError("top_p is 0", why="no token would be left", try_="temperature=0 for greedy decoding")
        _check_int("max_tokens", self.max_tokens, 1, 2**31)
        _check_int("min_tokens", self.min_tokens, 0, 2**31)
        _check_int("top_k", self.top_k, -1, 2**31)
        _check_int("seed", self.seed, 0, 2**64 - 1)
        _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(f"logit_bias has {len(self.logit_bias)} entries", why=f"the limit is {MAX_BIASES}")
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias token", token, 0, 2**31)
            _check_number(f"logit_bias[{token}]", bias, -100.0, 100.0)
        if len(self.stops) > MAX_STOPS or any(not s or len(s.encode()) > MAX_STOP_BYTES for s in self.stops):
            raise UserError(
                "stop must be at most 16 strings of 1 to 256 bytes", why=f"got {len(self.stops)}: {self.stops!r:.80}"
            )
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, 0, 2**31)

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on the tokens before (call on a resolved instance)."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty not in (None, 1.0)

    def resolve(self, hints: Mapping[str, float] | None = None) -> "Sampling":
        """Every None that has a default replaced: the model's hints first, then OpenAI's defaults."""
        hints = hints or {}
        filled = {n: hints.get(n, _DEFAULTS[n]) for n in _HINTED if getattr(self, n) is None}
        if "top_k" in filled:
            filled["top_k"] = int(filled["top_k"])
        return replace(self, **filled)  # type: ignore[arg-type]

    @staticmethod
    def names() -> list[str]:
        """The field names, for servers and command lines."""
        return [f.name for f in fields(Sampling)]


@dataclass(frozen=True, slots=True)
class Noise:
    """The random stream of one request: counter-based, so batch-mates and preemption never shift it.

    Keyed by (seed, child); every draw names its absolute position and its purpose (see kernels/sampling).
    """

    seed: int
    child: int = 0


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}", why=f"it must be a finite number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise UserError(f"{name} is {value:g}", why=f"it must be from {low:g} to {high:g}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name} is {value!r}", why=f"it must be a whole number from {low} to {high}")
