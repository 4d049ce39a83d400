"""Tokens drawn by native threads: the law, the noise and so the token of the torch path, whose oracles are
`reference.law` and transformers (test_sampling.py)."""

import math
import random
from dataclasses import replace

import pytest
import torch
from native import LEVELS, team
from torch import Tensor

from stretto.core.errors import RunError, UserError
from stretto.core.sampling import Noise, Sampling
from stretto.kernels.sampling import Purpose, RowSampling, picks
from stretto.kernels.sampling import reference as spec

FIELDS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1e-30},
    {"temperature": 0.8, "top_k": 1},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.5, "top_k": 7, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.97},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.9, "top_k": 200, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 1.2, "repetition_penalty": 1.3, "presence_penalty": 0.4, "top_k": 50},
    {"temperature": 0.0, "frequency_penalty": 1.5},
]


def logits_of(kind: str, width: int) -> Tensor:
    """One row [W] fp32: peaked like a model's, flat, or in quarters with many ties and impossible tokens."""
    if kind == "peaked":
        return 3.0 * torch.randn(width) + 12.0 * (torch.rand(width) < 3 / width)
    if kind == "flat":
        return 0.01 * torch.randn(width)
    x = torch.randint(-8, 9, (width,)) / 4.0
    x[torch.rand(width) < 0.3] = -math.inf
    x[random.randrange(width)] = 1.0
    return x


def rows_of(fields: dict[str, float], count: int, width: int) -> list[RowSampling]:
    return [
        RowSampling(
            Sampling(**fields).resolve(),  # type: ignore[arg-type]
            Noise(random.getrandbits(64), random.randrange(3)),
            random.randrange(1 << 20),
            output=[random.randrange(width) for _ in range(9)],
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("kind", ["peaked", "flat", "ties"])
def test_tokens_are_those_of_the_torch_path(fields: dict[str, float], kind: str) -> None:
    random.seed(str(fields) + kind)
    torch.manual_seed(random.getrandbits(32))
    for width in (1, 3, 16, 63, 64, 65, 1000, 49152):
        count = 12
        x = torch.stack([logits_of(kind, width) for _ in range(count)])
        rows = rows_of(fields, count, width)
        want = picks(x, rows)
        for level in LEVELS:
            assert picks(x, rows, threads=team(level)) == want, (width, level)
        assert picks(x, rows, threads=team(num_threads=1)) == want, width
        for r in range(count):
            assert picks(x[r : r + 1], rows[r : r + 1], threads=team()) == [want[r]], "whoever is drawn with it"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_masks_are_those_of_the_torch_path(temperature: float) -> None:
    """A grammar's mask after bias and penalties, and beside bans; masks may be longer or shorter than a row."""
    random.seed(temperature)
    torch.manual_seed(3)
    for width in (1, 7, 8, 9, 63, 1000):
        fields = {"temperature": temperature, "presence_penalty": 0.5}
        for size in (-(-width // 8), -(-width // 32) * 4 + 4, -(-width // 16)):
            x = torch.stack([logits_of("peaked", width) for _ in range(8)])
            rows = [
                replace(
                    row,
                    allowed=bytes([1 | random.getrandbits(8)]) + random.randbytes(size - 1),
                    banned=(width - 1,) if width > 8 else (),
                )
                for row in rows_of(fields, len(x), width)
            ]
            want = picks(x, rows)
            assert want == picks(x, rows, impl="reference")
            for level in LEVELS:
                assert picks(x, rows, threads=team(level)) == want, (width, level)
            for row, token in zip(rows, want, strict=True):
                assert row.allowed is not None and row.allowed[token // 8] >> token % 8 & 1


def test_a_mask_without_tokens_is_refused() -> None:
    (row,) = rows_of({"temperature": 1.0}, 1, 40)
    for allowed in (b"", bytes(5), b"\0\0\0\0\0\xff"):
        with pytest.raises(UserError, match="no token is allowed"):
            picks(torch.randn(1, 40), [replace(row, allowed=allowed)], threads=team())


def test_a_long_draw_is_the_argmax_of_logits_and_noise_in_plain_python() -> None:
    random.seed(7)
    torch.manual_seed(7)
    width, found = 700, set[int]()
    for _ in range(60):
        x = logits_of("peaked", width)
        (row,) = rows_of({"temperature": 0.7}, 1, width)
        law = spec.law(x.tolist(), row.sampling)
        best = max(law, key=lambda t: law[t] + spec.gumbel(row.noise, row.position, Purpose.TOKEN, t))
        assert picks(x[None], [row], threads=team()) == [best]
        found.add(best)
    assert len(found) > 5


def test_the_frequencies_are_those_of_the_law() -> None:
    """Chi-square over a toy vocabulary, with the nucleus cut: 4 of 6 tokens survive."""
    from scipy.stats import chisquare

    x, fields, n = torch.tensor([2.0, 1.0, 0.5, -4.0, 0.0, -6.0]), {"temperature": 1.3, "top_p": 0.95}, 4000
    law = spec.law(x.tolist(), Sampling(**fields).resolve())
    assert sorted(law) == [0, 1, 2, 4]
    rows = [RowSampling(Sampling(**fields).resolve(), Noise(5), position) for position in range(n)]
    counts = torch.bincount(torch.tensor(picks(x.expand(n, -1).contiguous(), rows, threads=team())), minlength=6)
    total = sum(map(math.exp, law.values()))
    assert counts[[3, 5]].tolist() == [0, 0]
    want = [n * math.exp(law[t]) / total for t in sorted(law)]
    assert chisquare(counts[sorted(law)].numpy(), want).pvalue > 1e-3


@pytest.mark.parametrize("fields", [FIELDS[0], FIELDS[5], FIELDS[7]], ids=str)
def test_rows_without_a_choice_are_refused(fields: dict[str, float]) -> None:
    (row,) = rows_of(fields, 1, 40)
    for bad, error in ((math.nan, RunError), (math.inf, RunError)):
        x = torch.randn(1, 40)
        x[0, 33] = bad
        with pytest.raises(error):
            picks(x, [row], threads=team())
    with pytest.raises(UserError, match="no token is allowed"):
        picks(torch.full((1, 40), -math.inf), [row], threads=team())
    banned = RowSampling(row.sampling, row.noise, row.position, banned=range(40))
    with pytest.raises(UserError, match="no token is allowed"):
        picks(torch.randn(1, 40), [banned], threads=team())
