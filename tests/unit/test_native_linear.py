"""Products in the file's own integers: every layout against fp64, and bits that nothing but the row decides."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import LAYOUTS, LEVELS, PLAIN, run_rows, stored, team
from torch import Tensor

from stretto.core.card import CODECS, Can
from stretto.core.codec import Stored
from stretto.kernels.linear import lookup, matmul
from stretto.kernels.linear.native import NativeWeight, storage, tile


def product(x: Tensor, segments: Sequence[Stored], bias: Tensor | None = None, **where: object) -> Tensor:
    weight = tile(segments, team())
    return run_rows(lambda x: matmul(x, weight, bias), x, **where)  # type: ignore[arg-type]


def relative_error(x: Tensor, y: Tensor, segments: Sequence[Stored], bias: Tensor | None = None) -> float:
    dense = torch.cat([s.decode(torch.float32) for s in segments]).double()
    want = x.double() @ dense.T + (0.0 if bias is None else bias.double())
    return float((y - want).norm() / want.norm())


# 16-bit fixed point rounds every input by at most 2^-15 of the largest of its 32, uniformly: for normal inputs that is
# 2e-5 to 4e-5 of their size (the scale is a power of two), twice that for a few outputs; plain layouts compute in fp32
ERROR = {**dict.fromkeys(LAYOUTS, 8e-5), **dict.fromkeys(PLAIN, 1e-6)}


def test_the_cards_say_which_codecs_have_a_layout() -> None:
    assert {card.name for card in CODECS.cards(Can.NATIVE)} == set(LAYOUTS)


@pytest.mark.parametrize("codec", LAYOUTS)
def test_every_layout_equals_fp64(codec: str) -> None:
    for rows, out, width in ((1, 32, 256), (5, 70, 512), (67, 33, 768), (8, 1, 256)):
        x, weight, bias = torch.randn(rows, width) * 7, stored(codec, out, width), torch.randn(out)
        y = product(x, [weight], bias)
        assert relative_error(x, y, [weight], bias) < ERROR[codec]


def test_segments_of_several_codecs_lie_side_by_side() -> None:
    segments = [stored("q4_1", 40, 256), stored("q4_1", 40, 256), stored("q8_0", 17, 256), stored("f16", 3, 256)]
    x, bias = torch.randn(9, 256), torch.randn(100)
    assert relative_error(x, product(x, segments, bias), segments, bias) < 8e-5


@pytest.mark.parametrize("codec", LAYOUTS)
def test_bits_depend_on_the_row_alone(codec: str) -> None:
    x, weight = torch.randn(75, 512) * 3, [stored(codec, 96, 512)]
    together = product(x, weight)
    for r in (0, 3, 4, 63, 64, 74):
        assert torch.equal(product(x[r : r + 1], weight), together[r : r + 1])
    for n in (2, 3, 7, 64, 66):
        assert torch.equal(product(x[75 - n :], weight), together[75 - n :])
    for level in LEVELS:
        for threads in (1, 3):
            assert torch.equal(product(x, weight, level=level, num_threads=threads), together), (level, threads)


@pytest.mark.parametrize("codec", LAYOUTS)
def test_lookup_is_the_decoded_row(codec: str) -> None:
    weight, ids = stored(codec, 71, 256), torch.tensor([0, 70, 31, 32, 16, 47, 31])
    packed = tile([weight], team())

    def rows(x: Tensor) -> Tensor:
        return lookup(ids, packed, scale=3.0)

    import ctypes

    from stretto.kernels.native.tape import Tape

    tape = Tape(team(), max_rows=8, max_out=1, context=1)
    with tape.recording():
        y = rows(ids)
    tape.step.num_rows, tape.step.tokens = len(ids), ids.data_ptr()
    tape.run()
    assert ctypes.sizeof(tape.step) and torch.allclose(y[: len(ids)], 3 * weight.decode(torch.float32)[ids], rtol=3e-7)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 130),
    st.integers(1, 8),
    st.sampled_from([name for name in LAYOUTS if CODECS.card(name).make().block <= 32]),
)
def test_any_shape(rows: int, out: int, groups: int, codec: str) -> None:
    width = 32 * groups - (1 if codec in PLAIN and groups > 1 else 0)
    x, weight = torch.randn(rows, width), stored(codec, out, width)
    dense = weight.decode(torch.float32).double()
    # a result may cancel to almost nothing, so each is held to what rounding can do to it: an integer step of half of
    # 2 amax / 32639 for every input of a fixed-point group, and fp32 sums of codes and minima, which are larger than
    # the weights they make up
    largest = torch.nn.functional.pad(x.double().abs(), (0, -width % 32)).view(rows, -1, 32).amax(2)
    steps = largest.repeat_interleave(32, 1)[:, :width] / 32639 if codec not in PLAIN else torch.zeros(rows, width)
    sums = 2.0**-20 * x.double().abs().sum(1, keepdim=True) * 3 * dense.abs().max()
    assert ((product(x, [weight]) - x.double() @ dense.T).abs() <= steps.double() @ dense.abs().T + sums).all()


def test_zeros_huge_and_tiny_rows() -> None:
    weight = [stored("q4_1", 64, 256)]
    for factor in (0.0, 1e-38, 1e-30, 1e30, 1e36):
        x = torch.randn(3, 256) * factor
        y = product(x, weight)
        want = x.double() @ weight[0].decode(torch.float32).double().T
        largest = float(weight[0].decode(torch.float32).abs().max())
        step = max(2.0**-126, 4 * factor * 2.0**-15)  # the power of two of 32 values is a normal number
        assert (y - want).abs().max() <= 256 * largest * step / 2


def test_not_a_number_is_not_hidden() -> None:
    x = torch.randn(2, 256)
    x[0, 77], x[1, 3] = torch.nan, torch.inf
    y = product(x, [stored("q4_1", 32, 256)])
    assert not torch.isfinite(y).any()


def coarse(x: Tensor) -> Tensor:
    """Every 32 values as whole multiples of 1/127 of the largest of them, in fp64."""
    groups = x.double().view(len(x), -1, 32)
    scale = groups.abs().amax(2, keepdim=True) / 127
    return (torch.round(groups / scale.clamp(min=1e-300)) * scale).view(x.shape)


@pytest.mark.parametrize("codec", sorted(set(LAYOUTS) - set(PLAIN)))
def test_prompts_may_be_coarse_and_decoding_never_is(codec: str) -> None:
    x, weight = torch.randn(75, 512) * 3, [stored(codec, 96, 512)]
    x[9] = 0
    dense = weight[0].decode(torch.float32).double()
    exact, all_coarse = product(x, weight), product(x, weight, coarse_from=0)
    want = coarse(x) @ dense.T
    assert (all_coarse - want).norm() / want.norm() < 1e-5 and not torch.equal(all_coarse, exact)
    assert 2e-3 < relative_error(x, all_coarse, weight) < 1e-2, "what --prefill int8 costs"
    for n in (0, 1, 2, 3, 5, 31, 63, 64, 67, 75):
        y = product(x, weight, coarse_from=n)
        assert torch.equal(y[:n], exact[:n]) and torch.equal(y[n:], all_coarse[n:]), n
    for level in LEVELS:
        assert torch.equal(product(x, weight, coarse_from=7, level=level, num_threads=3)[7:], all_coarse[7:]), level
    x[3, 5], x[4, 9] = torch.nan, torch.inf
    assert not torch.isfinite(product(x, weight, coarse_from=0)[3:5]).any()


@pytest.mark.parametrize("codec", sorted(set(LAYOUTS) - set(PLAIN) - {"int8"}))
@pytest.mark.parametrize("byte", [0x77, 0xFF])
def test_the_largest_codes_and_coarse_integers_fit_every_sum(codec: str, byte: int) -> None:
    """0xFF is the largest code of every format but MXFP4, whose largest is 7. Levels may sum products in 16 bits."""
    made = CODECS.card(codec).make()
    data = torch.full((33, 512 // made.block, made.block_bytes), byte, dtype=torch.uint8)
    _, first, last = made.floats
    data[..., first:last] = stored(codec, 33, 512).data.view_as(data)[..., first:last]
    weight = [Stored(made, (33, 512), data.flatten(1))]
    x = torch.ones(7, 512) * torch.tensor([1, -1, 3, -3, 5, -5, 7.0])[:, None]  # 127 or -127 everywhere
    for level in LEVELS:
        assert relative_error(x, product(x, weight, coarse_from=0, level=level), weight) < 1e-6, level


def test_a_weight_counts_what_it_streams() -> None:
    weight = tile([stored("q4_1", 64, 256)], team())
    assert isinstance(weight, NativeWeight) and weight.nbytes == 64 * 256 // 32 * 20
    assert tile([stored("int8", 64, 256)], team()).nbytes == 64 * (256 + 4)


def test_rows_that_are_no_whole_groups_are_named() -> None:
    int8, bf16 = (CODECS.card(name).make() for name in ("int8", "bf16"))
    assert storage(int8, 64) == storage(int8, 96) == "int8"
    assert storage(int8, 40) == "int8 in rows of 40 values"
    assert storage(bf16, 40) == "bf16"


def test_a_scale_of_a_row_multiplies_its_sum_once() -> None:
    """Integers of int8 rows whose products fp32 holds exactly: what is left to rounding is one product."""
    codec = CODECS.card("int8").make()
    codes = torch.randint(-128, 128, (70, 64), dtype=torch.int8)
    scales = torch.rand(70, 1) * torch.tensor([1e-6, 1.0, 1e6]).repeat(24)[:70, None] - 1e-7
    scales[7] = 0
    x = torch.randint(-50, 51, (9, 64)).float()
    sums = x.double() @ codes.double().T
    assert torch.equal(product(x, [codec.join(codes, scales)]), (sums * scales.double().T).float())
