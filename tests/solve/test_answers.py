"""The answer in a text, and how good a text is."""

import ast
import math
import random
import subprocess
import sys
from fractions import Fraction

import pytest
from writers import believed, instantly, writer

from stretto.core.card import SCORERS
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.solve.budget import Budget
from stretto.solve.extract import normal, read_extract
from stretto.solve.group import Group
from stretto.solve.scorers.self import agreement
from stretto.solve.scorers.verifier import Verifier, arithmetic, value_of


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("last-number", "17 + 25 = 42.", "42"),
        ("last-number", "about 1,250.50 $", "1250.5"),
        ("last-number", "from 3-4", "4"),
        ("last-number", "it is -4", "-4"),
        ("last-number", "x=-0.0", "0"),
        ("last-number", "x4", "4"),
        ("last-number", "1,2345", "2345"),
        ("last-number", "007", "7"),
        ("last-number", "1" * 500, "1" * 500),
        ("last-number", "٣", None),
        ("last-number", "none", None),
        ("boxed", r"\boxed{1} so \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        ("boxed", r"\boxed{3} and \boxed{4", "3"),
        ("boxed", r"\boxed{1,000}", "1000"),
        ("boxed", "boxed", None),
        ("json:answer", 'so {"answer": 4} or {"answer": {"b": [1, 2]}} {"other": 1}', '{"b": [1, 2]}'),
        ("json:answer", '{"a": {"answer": 1}, "answer": "x  y"}', "x y"),
        ("json:answer", '{"answer": true', None),
        ("json:answer", "{" * 3000 + '{"answer": 7.0}', "7"),
        ("regex:is (yes|no)|maybe (x)", "is yes. maybe x", "x"),
        ("regex:[A-C]", "A, then B: C", "C"),
        ("regex:z", "A", None),
    ],
)
def test_the_answer_in_a_text(name: str, text: str, answer: str | None) -> None:
    assert read_extract(name)(text) == answer


@pytest.mark.parametrize("name", ["last", "json:", "regex:", "json", "regex:(", "boxed:1", ""])
def test_extractors_that_there_are_not(name: str) -> None:
    with pytest.raises(UserError, match="--extract"):
        read_extract(name, "--extract")


def test_numbers_have_one_spelling() -> None:
    noise = random.Random(0)
    for _ in range(300):
        whole, part = noise.randrange(10**6), noise.choice(["", ".5", ".50", ".0", "."])
        text = noise.choice(["-", "+", ""]) + noise.choice([f"{whole:,}", f"00{whole}", f"{whole}"]) + part
        found = normal(f" {text} ")
        assert Fraction(found) == Fraction(text.replace(",", "") + ("0" if text.endswith(".") else ""))
        assert found == normal(found) and not found.startswith("+") and found != "-0"


def test_arithmetic_is_read_and_never_run() -> None:
    noise = random.Random(1)
    for _ in range(300):
        a, b, c = (noise.randint(0, 99) for _ in range(3))
        text = noise.choice([f"{a} + {b} * {c}", f"({a} - {b}) / {c + 1}", f"-{a} - {b}", f"{a}.5*{b}"])
        assert value_of(text) == Fraction(str(numbers(text))) or abs(float(value_of(text) or 0) - numbers(text)) < 1e-9
    assert value_of("3 x (2 + 1)") == 9 and value_of("8 ÷ 3") == Fraction(8, 3) and value_of("$1,000 + 1") == 1001
    for wrong in ("", "1 / 0", "2 ** 9", "__import__('os')", "1 if 1 else 2", "9" * 21):
        assert value_of(wrong) is None
    assert value_of("+".join(["1"] * 40)) is None, "too deep"


def numbers(text: str) -> float:
    """With Python's own floats."""

    def of(node: ast.expr) -> float:
        match node:
            case ast.Constant(value):
                return float(value)  # type: ignore[arg-type]
            case ast.UnaryOp(_, inner):
                return -of(inner)
            case ast.BinOp(left, ast.Add(), right):
                return of(left) + of(right)
            case ast.BinOp(left, ast.Sub(), right):
                return of(left) - of(right)
            case ast.BinOp(left, ast.Mult(), right):
                return of(left) * of(right)
            case ast.BinOp(left, _, right):
                return of(left) / of(right)
        raise AssertionError

    return of(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("So 17 + 25 = 42.", 1.0),
        ("17 + 25 = 43", 0.0),
        ("2 + 2 = 4\nthen 4 * 3 = 13", 0.5),
        ("1 + 1 = 2 = 3 - 1", 1.0),
        ("x = 4", 0.5),
        ("x = 4 + 1 = 5", 1.0),
        ("4 = 4", 0.5),
        ("nothing", 0.5),
    ],
)
def test_whether_arithmetic_holds(text: str, score: float) -> None:
    assert arithmetic(text) == score


def test_yes_beside_no() -> None:
    found = agreement({" Yes": math.log(0.3), "yes.": math.log(0.1), "No": math.log(0.1), "maybe": math.log(0.5)})
    assert found == pytest.approx(0.8)
    assert agreement({"maybe": -0.1}) == 0.5


def test_scores_of_the_tokens_that_a_model_wrote() -> None:
    """`logprob` and a pass over the whole text agree, and both are the mean of what the model believes."""

    async def main() -> None:
        group = Group(
            [writer(lambda ids, noise: "abcd")], "question", budget=Budget(), sampling=Sampling(seed=1),
            extract=read_extract("last-number"), scorer=SCORERS.card("logprob").make(),
        )  # fmt: skip
        (node,) = group.fork(await group.ask())
        await group.grow([node], logprobs=0)
        await group.score([node])
        means = [believed([ord(letter)], 0).logprob for letter in "abcd"]
        assert node.score == pytest.approx(math.exp(sum(means) / 4))
        assert [[one.logprob for one in text] for text in await group.read([node])] == [means]
        group.scorer = Verifier(lambda text: 7.0 * text.endswith("d"))
        node.score = None
        await group.score([node])
        assert node.score == 1.0, "scores end at 1"

    instantly(main())


@pytest.mark.parametrize("name", SCORERS.names())
def test_scorers_need_neither_torch_nor_scipy(name: str) -> None:
    code = (
        f"import sys; from stretto.core.card import SCORERS, SEARCHES; SCORERS.card({name!r}).make(); SEARCHES.cards()"
    )
    code += "; import stretto.solve.run; assert not {'torch', 'scipy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
