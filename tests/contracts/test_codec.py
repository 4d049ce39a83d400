"""The laws of the `Codec` socket, over every codec. The reference is the `gguf` package's numpy code, and for formats
that ggml has not, the definition written out in numpy."""

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.codecs._shared import STEP, check_finite
from stretto.core.card import CODECS, Can, Card
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, UserError

CARDS = CODECS.cards()
WRITERS = CODECS.cards(Can.ENCODE)


def each(cards):
    return pytest.mark.parametrize("card", cards, ids=lambda card: card.name)


def ggml_type(card: Card) -> gguf.GGMLQuantizationType:
    """The type of a format that ggml has, by the number that the codec gives."""
    kind = gguf.GGMLQuantizationType(card.make().gguf_type)
    assert kind.name.lower() == card.name
    return kind


def is_ggml(card: Card) -> bool:
    """Whether the package is the reference. The definitions of the others stand here."""
    assert card.make().gguf_type is not None or card.name == "int8", "this format needs a definition of its own"
    return card.make().gguf_type is not None


def sane(card: Card, rows: int, blocks: int, seed: int = 0) -> Stored:
    """Random bytes with finite scales: [rows, blocks * block]."""
    codec, rng = card.make(), np.random.default_rng(seed)
    dtype, first, last = codec.floats
    heads = torch.from_numpy(rng.integers(0, 256, (rows, 1, codec.head_bytes), dtype=np.uint8))
    raw = torch.from_numpy(rng.integers(0, 256, (rows, blocks, codec.block_bytes), dtype=np.uint8))
    holders = heads if codec.head_bytes else raw
    if holders.numel():
        scales = torch.from_numpy(rng.standard_normal((*holders.shape[:2], (last - first) // dtype.itemsize)))
        scales = scales.abs() if dtype == torch.float8_e8m0fnu else scales  # that type has no sign
        holders[:, :, first:last] = scales.to(dtype).view(torch.uint8)
    return Stored(codec, (rows, blocks * codec.block), torch.cat([heads.flatten(1), raw.flatten(1)], dim=1))


def reference(card: Card, data: torch.Tensor) -> np.ndarray:
    raw = data.contiguous().numpy()
    with np.errstate(all="ignore"):
        if is_ggml(card):
            return quants.dequantize(raw, ggml_type(card))
        # a product of 24 and 8 bits is exact in fp64, and rounded once
        scales = np.ascontiguousarray(raw[:, :4]).view(np.float32).astype(np.float64)
        return (scales * raw[:, 4:].view(np.int8)).astype(np.float32)


def encoded_by_the_reference(card: Card, x: np.ndarray) -> np.ndarray:
    """The bytes of x [rows, width] fp32."""
    if is_ggml(card):
        return quants.quantize(x, ggml_type(card)).view(np.uint8)
    rows = []
    for row in x:  # number by number, each operation rounded to fp32
        scale = np.float32(max(abs(v) for v in row) / np.float32(127))
        codes = [int(np.rint(np.float32(v / scale))) if scale else 0 for v in row]
        rows.append(np.concatenate([np.array([scale]).view(np.uint8), np.array(codes, dtype=np.int8).view(np.uint8)]))
    return np.stack(rows)


def bits_equal(got: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bits; any NaN equals any NaN."""
    same = got.view(np.int32) == np.ascontiguousarray(expected).view(np.int32)
    return bool((same | (np.isnan(got) & np.isnan(expected))).all())


def test_the_cards_name_their_codecs():
    for card in CARDS:
        codec = card.make()
        assert codec.name == card.name
        if is_ggml(card):
            assert (codec.block, codec.block_bytes) == gguf.GGML_QUANT_SIZES[ggml_type(card)]
            assert codec.head_bytes == 0


def test_ggml_types_and_file_types_are_those_of_the_package():
    numbers = [codec.gguf_type for card in CARDS if (codec := card.make()).gguf_type is not None]
    assert len(set(numbers)) == len(numbers) > 10
    for card in CARDS:
        if (number := card.make().gguf_file_type) is not None:
            known = gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
            assert known.lower() == card.name


@each(CARDS)
def test_decode_has_the_bits_of_the_reference(card):
    packed = sane(card, 700, 5 * 256 // card.make().block + 1)  # crosses the border of a step for small blocks
    assert bits_equal(packed.decode(torch.float32).numpy(), reference(card, packed.data))


@each(CARDS)
def test_decode_of_any_bytes_has_the_bits_of_the_reference(card):
    codec, rng = card.make(), np.random.default_rng(1)
    rows = STEP // 1024 + 3
    data = torch.from_numpy(rng.integers(0, 256, (rows, codec.row_bytes(1024)), dtype=np.uint8))
    assert bits_equal(Stored(codec, (rows, 1024), data).decode(torch.float32).numpy(), reference(card, data))


@each(CARDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_the_fp32_value_rounded_once(card, dtype):
    packed = sane(card, 9, 3)
    assert torch.equal(packed.decode(dtype), packed.decode(torch.float32).to(dtype))


def test_nibbles_lie_as_the_format_says():
    """Q4_1 by hand: d = 2, m = -1, byte j = low nibble of value j and high nibble of value j + 16."""
    qs = bytes((j & 15) | ((15 - j) & 15) << 4 for j in range(16))
    raw = np.array([2, -1], dtype=np.float16).tobytes() + qs
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    values = Stored(CODECS.card("q4_1").make(), (32,), data).decode(torch.float32)
    assert values.tolist() == [2 * j - 1 for j in range(16)] + [2 * (15 - j) - 1 for j in range(16)]


@each(CARDS)
@settings(max_examples=15, deadline=None)
@given(leading=st.lists(st.integers(0, 4), max_size=3), blocks=st.integers(0, 3), seed=st.integers(0, 99))
def test_shapes_bytes_and_rows(card, leading, blocks, seed):
    """Any leading dimensions, empty ones too: bytes as declared, values those of the rows alone."""
    codec, rows = card.make(), int(np.prod(leading, dtype=int))
    flat = sane(card, rows, blocks, seed)
    shape = (*leading, blocks * codec.block)
    packed = Stored(codec, shape, flat.data.view(*leading, flat.data.shape[-1]))
    values = packed.decode(torch.float32)
    assert values.shape == shape and packed.nbytes == codec.nbytes(shape)
    for i in range(rows):
        alone = flat.rows(i, i + 1).decode(torch.float32)
        assert torch.equal(alone[0], values.view(rows, shape[-1])[i])


@each(CARDS)
def test_views_that_are_not_contiguous_decode_alike(card):
    packed = sane(card, 12, 2)
    values = packed.decode(torch.float32)
    strided = Stored(packed.codec, (6, packed.shape[1]), packed.data[::2])
    assert torch.equal(strided.decode(torch.float32), values[::2])
    crossed = Stored(packed.codec, (4, 3, packed.shape[1]), packed.data.view(3, 4, -1).transpose(0, 1))
    assert torch.equal(crossed.decode(torch.float32), values.view(3, 4, -1).transpose(0, 1))
    assert torch.equal(packed.permute_rows(torch.arange(11, -1, -1)).decode(torch.float32), values.flip(0))


@each(CARDS)
def test_bytes_at_an_odd_address_decode_alike(card):
    packed = sane(card, 5, 2)
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), packed.data.flatten()])[1:].view(packed.data.shape)
    assert torch.equal(Stored(packed.codec, packed.shape, odd).decode(torch.float32), packed.decode(torch.float32))


@each(CARDS)
def test_decode_holds_a_few_megabytes(card):
    """What is decoded at a time does not grow with the tensor."""
    seen = []

    class Spy(type(card.make())):
        def unpack(self, blocks):
            seen.append(len(blocks) * self.block)
            return super().unpack(blocks)

    codec = Spy()
    for shape in [(2 * STEP // 256 + 1, 256), (2 * STEP,)]:  # many rows, and one very long row
        seen.clear()
        data = torch.zeros(*shape[:-1], codec.row_bytes(shape[-1]), dtype=torch.uint8)
        Stored(codec, shape, data).decode(torch.bfloat16)
        assert max(seen) <= STEP and sum(seen) == int(np.prod(shape))


@each(CARDS)
def test_a_strided_view_is_not_copied_whole(card):
    held = []

    class Spy(type(card.make())):
        def unpack(self, blocks):
            held.append(blocks.untyped_storage().nbytes())
            return super().unpack(blocks)

    codec = Spy()
    data = torch.zeros(8 * STEP // 512, codec.row_bytes(512) + 2, dtype=torch.uint8)[:, :-2]
    Stored(codec, (len(data), 512), data).decode(torch.bfloat16)
    part = STEP // codec.block * codec.block_bytes
    assert all(n <= part or n == data.untyped_storage().nbytes() for n in held)  # a copy of the part, or no copy
    assert len(held) == 8


def inputs(width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    normal = rng.standard_normal((400, width)).astype(np.float32)
    return {
        "normal": normal,
        "bf16": (normal.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "whole": rng.integers(-64, 65, (200, width)).astype(np.float32),
        "small": normal[:100] * np.float32(1e-6),
        "offset": normal[:100] + np.float32(100),
        "zero": np.zeros((2, width), dtype=np.float32),
        "one": np.eye(1, width, 3, dtype=np.float32) - np.eye(1, width, 5, dtype=np.float32),
    }


def q4_0_codes(data: np.ndarray) -> np.ndarray:
    """[rows, width] codes of packed rows."""
    qs = data.reshape(-1, 18)[:, 2:]
    return np.concatenate([qs & 15, qs >> 4], axis=1).reshape(len(data), -1)


@each(WRITERS)
@pytest.mark.parametrize("kind", inputs(64))
def test_encode_has_the_bytes_of_the_reference(card, kind):
    x = inputs(64)[kind]
    packed = card.make().encode(torch.from_numpy(x))
    expected = encoded_by_the_reference(card, x)
    got = packed.data.numpy()
    assert packed.shape == x.shape and got.shape == expected.shape
    different = got != expected
    if card.name == "q4_0" and different.any():
        # Some versions of the package compute the codes in fp64: neighbours where the sum is next to a whole number.
        apart = q4_0_codes(got).astype(int) - q4_0_codes(expected)
        d = x.reshape(-1, 32)[np.arange(x.size // 32), np.abs(x.reshape(-1, 32)).argmax(1)].astype(np.float64) / -8
        exact = (x.reshape(-1, 32) / d[:, None] + 8.5).reshape(x.shape)
        assert np.abs(apart).max() == 1 and (np.abs(exact - exact.round())[apart != 0] < 1e-5).all()
    else:
        assert not different.any()


def test_halfway_values_round_as_the_formats_say():
    """bf16 and f16 to even, Q8_0 away from zero; every halfway value of the 16-bit formats."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    between = (upper | 0x8000).view(np.float32)
    between = between[np.abs(between) < 3e38][None]  # finite, and not rounded up to infinity
    halves = np.arange((1 << 15) - 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    halves = halves[np.isfinite(halves)]
    halves = np.concatenate([(halves[:-1] + halves[1:]) / 2, -(halves[:-1] + halves[1:]) / 2])[None]
    bytes_ = np.concatenate([np.arange(-15.5, 15), [127.0]])[None]  # the scale is 1
    for name, x in (("bf16", between), ("f16", halves), ("q8_0", bytes_)):
        x = x.astype(np.float32)
        expected = quants.quantize(x, gguf.GGMLQuantizationType[name.upper()]).view(np.uint8)
        assert (CODECS.card(name).make().encode(torch.from_numpy(x)).data.numpy() == expected).all(), name


@pytest.mark.parametrize("kind", inputs(64))
def test_q4_0_rounds_product_and_sum_to_fp32(kind):
    x = inputs(64)[kind].reshape(-1, 32)
    top = x[np.arange(len(x)), np.abs(x).argmax(1)][:, None]
    d = (top / np.float32(-8)).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d).astype(np.float32)
    product = (x * inverse).astype(np.float32)
    codes = np.minimum((product + np.float32(8.5)).astype(np.float32).astype(np.int32), 15)
    packed = CODECS.card("q4_0").make().encode(torch.from_numpy(x))
    assert (q4_0_codes(packed.data.numpy()) == codes).all()


@each(WRITERS)
@settings(max_examples=15, deadline=None)
@given(leading=st.lists(st.integers(0, 3), max_size=2), blocks=st.integers(0, 3), seed=st.integers(0, 99))
def test_rows_are_encoded_alone(card, leading, blocks, seed):
    codec = card.make()
    shape = (*leading, blocks * codec.block)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    packed = codec.encode(x)
    assert packed.shape == shape and packed.nbytes == codec.nbytes(shape) and packed.data.dtype == torch.uint8
    rows = x.reshape(-1, shape[-1]) if x.numel() else x.new_empty(0, 0)
    for i, row in enumerate(rows):
        assert torch.equal(codec.encode(row).data, packed.data.view(len(rows), -1)[i])


@each(WRITERS)
def test_encode_takes_views_and_other_dtypes(card):
    codec, x = card.make(), torch.randn(64, 96)
    assert torch.equal(codec.encode(x.t()).data, codec.encode(x.t().contiguous()).data)
    assert torch.equal(codec.encode(x.double()).data, codec.encode(x).data)
    half = x.to(torch.bfloat16).requires_grad_()
    assert torch.equal(codec.encode(half).data, codec.encode(half.detach().float()).data)
    long = torch.randn(1, STEP + 32)
    if codec.head_bytes == 0:  # a row is its blocks
        assert torch.equal(codec.encode(long).data.view(-1), codec.encode(long.view(-1, 32)).data.view(-1))
    else:
        assert (codec.encode(long).decode(torch.float32) - long).abs().max() < 0.5


@each(WRITERS)
def test_a_row_that_is_no_multiple_of_the_block_is_refused(card):
    codec = card.make()
    if codec.block == 1:
        assert codec.encode(torch.ones(2, 33)).shape == (2, 33)
    else:
        with pytest.raises(UserError, match="33 values"):
            codec.encode(torch.ones(2, 33))


@each([card for card in WRITERS if card.name not in ("f32", "bf16")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_a_scale_cannot_hold_are_refused(card, bad):
    if bad < torch.finfo(card.make().floats[0]).max:
        return  # this one can
    x = torch.ones(2, 32)
    x[1, 7] = bad
    with pytest.raises(UserError, match="cannot be stored"):
        card.make().encode(x)


@each([card for card in CARDS if Can.ENCODE not in card.can])
def test_reading_codecs_refuse_to_write(card):
    for x in (torch.ones(1, 256), torch.ones(0, 256)):
        with pytest.raises(UserError, match=f"{card.name} can be read, not written"):
            card.make().encode(x)


def all_finite(card: Card) -> torch.Tensor:
    """Finite stored values: every one of a 2-byte format, random ones of fp32."""
    codec = card.make()
    if codec.block_bytes == 2:
        data = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.uint8).view(1, -1)
    else:
        data = torch.randint(0, 256, (1, 1 << 16), dtype=torch.uint8)
    keep = torch.isfinite(codec.scales(data.view(-1, codec.block_bytes)))[:, 0]
    return data.view(-1, codec.block_bytes)[keep].reshape(1, -1)


@each(CODECS.cards(Can.EXACT_REENCODE))
def test_exact_reencode(card):
    codec, data = card.make(), all_finite(card)
    packed = Stored(codec, (1, data.shape[1] // codec.block_bytes), data)
    assert torch.equal(codec.encode(packed.decode(torch.float32)).data, data)


@each([card for card in WRITERS if Can.EXACT_REENCODE not in card.can])
def test_codecs_that_do_not_claim_exact_reencode_lack_it(card):
    packed = sane(card, 50, 4)
    assert not torch.equal(card.make().encode(packed.decode(torch.float32)).data, packed.data)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "mxfp4", "int8"])
def test_what_was_encoded_stays(name):
    """The symmetric formats keep their own output, although not every stored block."""
    once = CODECS.card(name).make().encode(torch.randn(300, 128))
    assert torch.equal(once.codec.encode(once.decode(torch.float32)).data, once.data)


def test_bf16_keeps_nan_wherever_it_stands():
    x = torch.tensor([0x7FFFFFFF, 0x7F800001, -1, 0x7F800000], dtype=torch.int32).view(torch.float32).repeat(9)
    codec = CODECS.card("bf16").make()
    stored = codec.encode(x).data
    expected = quants.quantize(x.numpy()[None], gguf.GGMLQuantizationType.BF16).view(np.uint8)[0]
    assert stored.numpy().tobytes() == expected.tobytes()
    assert torch.equal(codec.encode(x[3:]).data, stored[6:])


@each(CARDS)
def test_scales_that_are_not_finite_are_refused(card):
    packed = sane(card, 3, 4)
    check_finite(packed, "w", "m.gguf")
    dtype, first, last = packed.codec.floats
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(dtype)
    bad = bad[~bad.float().isfinite()]  # of a type without infinity: NaN
    assert len(bad)
    for at in range(first, last, dtype.itemsize):
        for row in (0, 2):
            for value in bad:
                data = packed.data.clone()
                # the last block of the row, or the head of all
                start = at if packed.codec.head_bytes else 3 * packed.codec.block_bytes + at
                data[row, start : start + dtype.itemsize] = value.view(1).view(torch.uint8)
                with pytest.raises(ModelFileError, match=f"m.gguf: tensor 'w' .* row {row}"):
                    check_finite(Stored(packed.codec, packed.shape, data), "w", "m.gguf")
                    pytest.fail(f"byte {at} of row {row} was not looked at")
