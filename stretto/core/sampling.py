"""`Sampling` and `Noise`: how tokens are chosen, from which random numbers, and when a text ends. No torch here: the
command line validates before loading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar
from stretto.core.option import check_fields, check_number, option

_HINTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_DEFAULTS: Mapping[str, float] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip
_MOST = 2**31
MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS, MAX_BIASES = 16, 256, 20, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """OpenAI's field names, plus `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`.

    A field left at None takes the model's own generation hint, else OpenAI's default. Order of operations:
    logit_bias, penalties, grammar, temperature, top_k, top_p, min_p, draw. grammar: the form of the text, which ends
    where the grammar does. Raises UserError for anything out of range.
    """

    max_tokens: int | None = option(
        "at most this many tokens (default: what fits)", short="-n", default=None, low=1, high=_MOST
    )
    min_tokens: int = option("end-of-text tokens do not come before this many", default=0, low=0, high=_MOST)
    temperature: float | None = option(
        "0 takes the likeliest token, the lowest id on a tie (default: the model's hint, else 1)",
        flag="temp",
        default=None,
        low=0,
        high=100,
    )
    top_p: float | None = option(
        "keep the likeliest tokens that make up this mass (default: the model's hint, else all)",
        default=None,
        low=0,
        high=1,
    )
    top_k: int | None = option(
        "keep this many of the likeliest tokens, 0 or -1 for all (default: the model's hint, else all)",
        default=None,
        low=-1,
        high=_MOST,
    )
    min_p: float | None = option(
        "drop tokens less likely than this times the likeliest (default: the model's hint, else 0)",
        default=None,
        low=0,
        high=1,
    )
    presence_penalty: float = option(
        "subtracted from the logit of every token generated so far", default=0.0, low=-2, high=2
    )
    frequency_penalty: float = option("the same, times how often it was generated", default=0.0, low=-2, high=2)
    repetition_penalty: float | None = option(
        "divides positive logits of the tokens of prompt and output, multiplies negative ones (default: the model's"
        " hint, else 1)",
        default=None,
        low=1e-3,
        high=1e3,
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int | None = option(
        "the same seed gives the same text (default: a random one, which the result reports)",
        default=None,
        low=0,
        high=2**64 - 1,
    )
    stop: str | Sequence[str] = option(
        "the text ends before this string; may be repeated", default=(), kind=tuple[str, ...]
    )
    stop_token_ids: Sequence[int] = option(
        "the text ends at these tokens", default=(), kind=tuple[int, ...], metavar="N,...", low=0, high=_MOST
    )
    ignore_eos: bool = option("end-of-text tokens do not end the text", default=False)
    prompt_logprobs: int | None = option(
        "with every token of the prompt but the first its log-probability, and those of this many likeliest ones",
        default=None,
        flag=None,
        low=0,
        high=MAX_LOGPROBS,
    )
    logprobs: int | None = option(
        "with every token the log-probabilities of this many likeliest ones",
        default=None,
        flag=None,
        low=0,
        high=MAX_LOGPROBS,
    )

    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.grammar is None or isinstance(self.grammar, Grammar)):
            raise UserError(
                f"grammar is {self.grammar!r:.80}", try_="Grammar.json_schema(...), or another of its kinds"
            )
        if self.top_p == 0:
            raise UserError("top_p is 0", why="no token would be left", try_="temperature=0 for greedy decoding")
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(f"logit_bias has {len(self.logit_bias)} entries", why=f"the limit is {MAX_BIASES}")
        for token, bias in self.logit_bias.items():
            check_number(token, "logit_bias token", int, 0, _MOST)
            check_number(bias, f"logit_bias[{token}]", float, -100, 100)
        if len(self.stops) > MAX_STOPS or any(not s or len(s.encode()) > MAX_STOP_BYTES for s in self.stops):
            raise UserError(
                "stop must be at most 16 strings of 1 to 256 bytes", why=f"got {len(self.stops)}: {self.stops!r:.80}"
            )

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
