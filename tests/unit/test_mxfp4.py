"""MXFP4 against the definition of OCP Microscaling in exact arithmetic, and where other writers leave it."""

import math
from fractions import Fraction
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints import BASE
from gguf import quants
from native import team
from toy import finish, plain_decode
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.codecs.mxfp4 import MXFP4
from stretto.convert.convert import convert
from stretto.convert.load import load_model, matrix_codecs
from stretto.convert.model_file import open_model
from stretto.core.codec import Stored
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.runner.runner import Sizes

CODEC = MXFP4()
E2M1 = [Fraction(v) / 2 for v in (0, 1, 2, 3, 4, 6, 8, 12)]


def block(e: int, codes: list[int]) -> torch.Tensor:
    """The bytes of a block: codes of values 0-15 in the low halves, of 16-31 in the high ones."""
    codes = codes + [0] * (32 - len(codes))
    return torch.tensor([e, *(codes[j] | codes[j + 16] << 4 for j in range(16))], dtype=torch.uint8)


def fp32(x: Fraction) -> float:
    """Exact where fp32 holds x; infinity above its largest."""
    return float(np.float32(float(x))) if abs(x) < Fraction(2) ** 128 else math.copysign(math.inf, x)


def encoded(x: list[float]) -> torch.Tensor:
    """The bytes of 32 numbers by the recipe of the standard, value by value."""
    amax = max(abs(v) for v in x)
    e = max(0, math.frexp(amax)[1] - 1 - 2 + 127) if amax else 0
    codes = []
    for value in x:
        size = abs(Fraction(value)) / Fraction(2) ** (e - 127)
        nearest = min(range(8), key=lambda i: (abs(E2M1[i] - size), i))
        codes.append(nearest + (8 if value < 0 and nearest else 0))
    return block(e, codes)


def test_every_scale_and_code_has_the_value_of_the_standard() -> None:
    data = torch.stack([block(e, list(range(16))) for e in range(255)])
    found = Stored(CODEC, (255, 32), data).decode(torch.float32)
    for e in range(255):
        sizes = [fp32(v * Fraction(2) ** (e - 127)) for v in E2M1]
        assert found[e].tolist() == [*sizes, *(-size for size in sizes), *[0.0] * 16]
    assert not torch.signbit(found[found == 0]).any(), "minus zero is zero, as in ggml"


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e36, 2.0**-124, 2.0**-140])
def test_encoding_is_the_recipe_of_the_standard(scale: float) -> None:
    x = torch.randn(40, 32) * scale * torch.rand(40, 1)
    for row in x:
        assert torch.equal(CODEC.encode(row).data, encoded(row.tolist()))


def test_ties_go_to_the_smaller_and_what_is_too_large_becomes_the_largest() -> None:
    x = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 4.0, 7.5, -0.25, -0.75, -7.9]
    want = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 6.0, 0.0, -0.5, -6.0]
    packed = CODEC.encode(torch.tensor(x + [0.0] * 20))
    assert torch.equal(packed.data, encoded(x + [0.0] * 20))
    assert packed.decode(torch.float32).tolist() == want + [0.0] * 20


@pytest.mark.parametrize(
    ("largest", "theirs"),
    [(float(np.nextafter(np.float32(8), np.float32(0))), 128), (1e-38, 254), (1.5e-38, 255)],
    ids=["below a power of two", "tiny", "tiny, and NaN in the standard"],
)
def test_where_the_package_leaves_the_recipe(largest: float, theirs: int) -> None:
    """If this fails, the package has changed and the docstring of the codec with it."""
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, 3] = largest
    with np.errstate(all="ignore"):
        assert quants.quantize(x, gguf.GGMLQuantizationType.MXFP4)[0, 0] == theirs
    assert torch.equal(CODEC.encode(torch.from_numpy(x[0])).data, encoded(x[0].tolist()))


def test_the_error_on_gaussian_values_is_the_known_one() -> None:
    """Relative mean squares 0.01323: E2M1 clips what lies between 6 and 8 times the scale."""
    x = torch.randn(20000, 32)
    error = (CODEC.encode(x).decode(torch.float32) - x).double().square().mean() / x.double().square().mean()
    assert float(error) == pytest.approx(0.01323, rel=0.01)


def test_a_model_file_runs_natively_and_says_what_torch_says(tmp_path: Path) -> None:
    """From a checkpoint to GGUF, into tiles, to the greedy tokens of the decoded numbers in fp32."""
    config = AutoConfig.for_model("llama", **BASE | {"hidden_size": 64, "intermediate_size": 96})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "m.gguf", "gguf", "mxfp4")
    model, prompt = open_model(tmp_path / "m.gguf"), [3, 1, 4, 1, 5]
    assert matrix_codecs(model) == {"mxfp4"}
    engine = Engine(load_model(model, team=team()), Sizes(context=64), threads=team())
    request = engine.add(prompt, Sampling(temperature=0, max_tokens=20).resolve())
    assert finish(engine)[request.rid] == plain_decode(load_model(model), prompt, 20)
