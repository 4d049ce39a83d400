"""Simulated models of a known skill, for claims whose models this machine has not: they show what a search does with
given odds, and nothing about language."""

import random
import re
from collections.abc import Sequence

from stretto.engine.request import TokenLogprobs
from stretto.solve.scripted import Scripted

_ANSWER = re.compile(r"=(\d);")
_QUESTION = re.compile(r"#(\d)/(\d+)")


def question(noise: random.Random) -> tuple[str, str]:
    """A text that the model can read the right answer from, with a difficulty in percent; the answer."""
    answer = str(noise.randrange(10))
    return f"#{answer}/{noise.randrange(101)} ", answer


def skilled(skill: float, sight: float) -> Scripted:
    """A model that answers a question of difficulty d alone with odds skill (1 - d), and of several answers before it
    sees which one is right, if one is, with odds `sight`; else it repeats one of them, or answers alone, by the toss of
    a coin. Wrong answers agree more the harder the question is. Of right answers it is, by a little, more sure."""

    def write(ids: Sequence[int], noise: random.Random) -> str:
        text = "".join(map(chr, ids))
        right, difficulty = _read(text)
        seen = _ANSWER.findall(text)
        lure = str((int(right) + 3) % 10)
        if right in seen and noise.random() < sight:
            said = right
        elif seen and noise.random() < 0.5:
            said = noise.choice(seen)
        elif noise.random() < skill * (1 - difficulty):
            said = right
        else:
            said = lure if noise.random() < difficulty else str(noise.randrange(10))
        return "." * noise.randrange(20, 40) + f"={said};"

    def believe(ids: Sequence[int], place: int) -> TokenLogprobs:
        text = "".join(map(chr, ids))
        right, _ = _read(text)
        last = _ANSWER.findall(text)[-1:]
        doubt = 0.1 if last == [right] else 0.2
        return TokenLogprobs(-doubt, {0: -doubt, 1: -1 / doubt + random.Random(text).gauss(0, 3)})

    return Scripted(write, believe, slowest=0.0)


def _read(text: str) -> tuple[str, float]:
    found = _QUESTION.match(text)
    assert found is not None
    return found[1], int(found[2]) / 100
