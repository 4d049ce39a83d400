"""GGUF files: against the `gguf` package both ways, and against damage of every byte that is parsed."""

import errno
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.convert._shared import forget_pages, map_file
from stretto.convert.gguf_ import CODEC_OF_TYPE, GGUFFile, Typed, write_gguf
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError, RunError, UserError

METADATA = {
    "general.architecture": "llama",
    "flag": True,
    "count": 7,
    "negative": -3,
    "big": 1 << 40,
    "low": -(1 << 40),
    "ratio": 0.5,
    "words": ["a", "", "ü"],
    "flags": [True, False],
    "counts": [1, 2, 3],
    "signed": [-1, 2],
    "ratios": [0.5, -1.25],
    "wide": Typed(kind="f64", value=0.1),
    "bytes": Typed(kind="u8", value=[1, 255]),
}


def plain(metadata):
    return {key: value.value if isinstance(value, Typed) else value for key, value in metadata.items()}


def some_tensors() -> dict[str, Stored]:
    """One tensor of every codec, random bytes with finite scales."""
    rng, found = np.random.default_rng(0), {}
    for name in CODEC_OF_TYPE.values():
        codec = CODECS.card(name).make()
        raw = rng.integers(0, 60, (3, codec.row_bytes(512)), dtype=np.uint8)  # every 16-bit pattern of these is finite
        found[f"{name}.weight"] = Stored(codec, (3, 512), torch.from_numpy(raw))
    found["cube"] = CODECS.card("f32").make().encode(torch.randn(2, 3, 5))
    found["line"] = CODECS.card("f16").make().encode(torch.randn(7))
    return found


def specs(tensors):
    return {name: (packed.codec.name, packed.shape) for name, packed in tensors.items()}


@pytest.fixture
def written(tmp_path):
    tensors = some_tensors()
    write_gguf(tmp_path / "m.gguf", METADATA, specs(tensors), tensors.__getitem__)
    return tmp_path / "m.gguf", tensors


def test_the_package_reads_what_we_write(written):
    path, tensors = written
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == plain(METADATA)
    kinds = {key: reader.fields[key].types[-1].name for key in METADATA}
    numbers = ("UINT32", "INT32", "UINT64", "INT64", "FLOAT32", "FLOAT64")
    assert tuple(kinds[k] for k in ("count", "negative", "big", "low", "ratio", "wide")) == numbers
    assert [kinds[k] for k in ("flag", "words", "signed", "bytes")] == ["BOOL", "STRING", "INT32", "UINT8"]
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        packed = tensors[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == packed.shape
        expected = quants.dequantize(tensor.data, tensor.tensor_type).reshape(packed.shape)
        assert np.array_equal(packed.decode(torch.float32).numpy(), expected)


def test_we_read_what_we_write(written):
    path, tensors = written
    file = GGUFFile(path)
    assert file.metadata == plain(METADATA)
    assert {key: type(value) for key, value in file.metadata.items()} == {
        k: type(v) for k, v in plain(METADATA).items()
    }
    assert file.names() == list(tensors) == list(file.tensors)
    for name, packed in tensors.items():
        found = file.stored(name)
        assert (found.codec.name, found.shape) == (packed.codec.name, packed.shape)
        assert torch.equal(found.data, packed.data)


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_we_read_what_the_package_writes(tmp_path, alignment):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_token_list(["<s>", "ä", " b"])
    writer.add_token_types([3, 1, 1])
    writer.add_token_scores([0.0, -1.5, -2.0])
    writer.add_float64("x.f64", 0.1)
    writer.add_int8("x.i8", -5)
    writer.add_uint64("x.u64", 1 << 63)
    writer.add_array("x.nested", [[1, 2], [3]])
    rng, expected = np.random.default_rng(0), {}
    for name in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "mxfp4"):
        x = rng.standard_normal((5, 64)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[name.upper()]
        stored = quants.quantize(x, kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
        expected[f"{name}.weight"] = quants.dequantize(stored.view(np.uint8), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)
    assert file.metadata == {
        "general.architecture": "llama",
        "general.alignment": alignment,
        "tokenizer.ggml.tokens": ["<s>", "ä", " b"],
        "tokenizer.ggml.token_type": [3, 1, 1],
        "tokenizer.ggml.scores": [0.0, -1.5, -2.0],
        "x.f64": 0.1,
        "x.i8": -5,
        "x.u64": 1 << 63,
        "x.nested": [[1, 2], [3]],
    }
    assert file.names() == list(expected)
    for name, values in expected.items():
        assert np.array_equal(file.stored(name).decode(torch.float32).numpy(), values)
        assert file.tensors[name].start % alignment == 0


def test_packed_is_a_view_of_the_file(written):
    file = GGUFFile(written[0])
    first, second = file.stored("q4_1.weight"), file.stored("q4_1.weight")
    assert first.data.data_ptr() == second.data.data_ptr()


def test_bad_scales_are_refused_on_request(tmp_path):
    packed = CODECS.card("q8_0").make().encode(torch.ones(2, 64))
    packed.data[1, 34:36] = torch.tensor([0x00, 0x7E], dtype=torch.uint8)  # NaN
    write_gguf(tmp_path / "m.gguf", {}, {"w": ("q8_0", (2, 64))}, lambda name: packed)
    file = GGUFFile(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match=r"'w' has a scale .* row 1"):
        file.stored("w")
    assert file.stored("w", check=False).shape == (2, 64)


def test_unknown_tensors_are_named_with_near_ones(written):
    with pytest.raises(ModelFileError, match=r"'q4_1\.weigth'(.|\n)*'q4_1\.weight'"):
        GGUFFile(written[0]).stored("q4_1.weigth")


def test_a_missing_path_is_the_users_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UserError) as caught:
            GGUFFile(path)
        assert caught.value.exit_code == 2


# ---- hand-made files ----


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def line(name="w", dims=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, n: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + raw


def build(lines=(), pairs=(), data=bytes(512), version=3, num_tensors=None, num_pairs=None, magic=b"GGUF") -> bytes:
    counts = (len(lines) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(lines)
    return head + bytes(-len(head) % 32) + data


HUGE = (2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
TWICE = [line("w"), line("w", offset=128)]
BAD = {
    "empty": (b"", "empty"),
    "short": (b"GG", "cut off"),
    "magic": (build(magic=b"GGML"), "not a GGUF"),
    "version 1": (build(version=1), "version 1"),
    "version 4": (build(version=4), "version 4"),
    "big endian": (build(version=3 << 24), "big-endian"),
    "tensors": (build(num_tensors=(1 << 17) + 1), "declares"),
    "pairs": (build(num_pairs=(1 << 16) + 1), "declares"),
    "more pairs than there are": (build(num_pairs=1 << 16), "cut off|twice"),
    "cut in the last string": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("k", 8, text("abc"))[:-1], "cut off"),
    "cut in the last array": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("k", 9, array(8, 1, text("abc")))[:-1],
        "cut off",
    ),
    "key twice": (build(pairs=[pair("k", 0, b"1"), pair("k", 0, b"2")]), "key 'k' twice"),
    "kind": (build(pairs=[pair("k", 13, b"")]), "unknown kind 13"),
    "kind in array": (build(pairs=[pair("k", 9, array(99, 1))]), "unknown kind 99"),
    "truth": (build(pairs=[pair("k", 7, b"\2")]), "truth value"),
    "not utf-8": (build(pairs=[pair("k", 8, struct.pack("<Q", 1) + b"\xff")]), "UTF-8"),
    "key not utf-8": (build(pairs=[struct.pack("<Q", 1) + b"\xff"]), "UTF-8"),
    "long string": (build(pairs=[pair("k", 8, struct.pack("<Q", (1 << 24) + 1))], data=bytes(1 << 25)), "16777216"),
    "long array": (build(pairs=[pair("k", 9, array(0, (1 << 24) + 1))], data=bytes(1 << 25)), "array elements"),
    "deep array": (build(pairs=[pair("k", 9, array(9, 1, array(9, 1, array(0, 1, b"1"))))]), "nested"),
    "alignment 0": (build(pairs=[pair("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
    "alignment 48": (build(pairs=[pair("general.alignment", 4, struct.pack("<I", 48))]), "alignment"),
    "alignment 2^17": (build(pairs=[pair("general.alignment", 4, struct.pack("<I", 1 << 17))]), "alignment"),
    "alignment text": (build(pairs=[pair("general.alignment", 8, text("32"))]), "alignment"),
    "alignment truth": (build(pairs=[pair("general.alignment", 7, b"\1")]), "alignment"),
    "name twice": (build(TWICE), "tensor 'w' twice"),
    "dims": (build([line(dims=(1, 1, 1, 1, 1))]), "5 dimensions"),
    "type": (build([line(name="odd one", kind=10)]), "'odd one' has the ggml type 10"),
    "no such type": (build([line(kind=2**32 - 1)]), "'w' has the ggml type 4294967295"),
    "row": (build([line(dims=(33,), kind=2)]), "'w' has rows of 33"),
    "offset": (build([line(offset=16)]), "multiple of 32"),
    "behind the file": (build([line(offset=512)]), "'w' ends behind"),
    "one byte short": (build([line(dims=(128,))])[:-1], "'w' ends behind"),
    "overlap": (build([line("a", (64,)), line("b", (8,), offset=128), line("c", (8,), offset=224)]), "'a' and 'b'"),
    "inside": (build([line("a", (64,)), line("b", (1,), offset=64)]), "'a' and 'b'"),
    "one byte": (
        build([line("a", (1,)), line("b", (1,), offset=3)], [pair("general.alignment", 4, struct.pack("<I", 1))]),
        "'a' and 'b' overlap",
    ),
    "same place": (build([line("a"), line("b")]), "overlap"),
} | {
    f"{what} {n}": (raw, "m.gguf")
    for n in HUGE
    for what, raw in {
        "string of": build(pairs=[text("k") + struct.pack("<IQ", 8, n)]),
        "key of": build(pairs=[struct.pack("<Q", n)]),
        "array of": build(pairs=[pair("k", 9, array(4, n))]),
        "strings": build(pairs=[pair("k", 9, array(8, n))]),
        "arrays": build(pairs=[pair("k", 9, array(9, n))]),
        "tensors": build(num_tensors=n),
        "pairs": build(num_pairs=n),
        "dim": build([line(dims=(n,))]),
        "two dims": build([line(dims=(n, n))]),
        "zero times": build([line(dims=(n, 0, n, n))]),
        "offset": build([line(offset=n)]),
    }.items()
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(tmp_path, case):
    raw, words = BAD[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=words) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 3


def test_what_is_odd_but_allowed(tmp_path):
    path = tmp_path / "m.gguf"
    lines = [line("a", (2, 3, 1, 4)), line("none", (0,), offset=96), line("scalar", (), offset=96)]
    path.write_bytes(build(lines, [pair("k", 9, array(9, 2, array(8, 0) + array(4, 0)))], version=2))
    file = GGUFFile(path)
    assert file.metadata == {"k": [[], []]}
    shapes = {name: tuple(file.stored(name).decode(torch.float32).shape) for name in file.names()}
    assert shapes == {"a": (4, 1, 3, 2), "none": (0,), "scalar": ()}
    path.write_bytes(build(data=b"")[:-8])  # nothing but a header: no padding needed
    assert GGUFFile(path).names() == []


def load_or_refuse(path, raw: bytes) -> bool:
    """True: everything in it could be read. Anything but a ModelFileError fails the test."""
    path.unlink(missing_ok=True)  # a new file: a mapped one must not shrink, and replacing bytes waits for the disk
    path.write_bytes(raw)
    try:
        file = GGUFFile(path)
        for name, info in file.tensors.items():
            assert info.start + info.nbytes <= len(raw)
            assert file.stored(name).decode(torch.float32).shape == info.shape
    except ModelFileError as e:
        assert str(path) in str(e)
        return False
    return True


@pytest.fixture(scope="module")
def tiny() -> tuple[bytes, int]:
    """(a small good file, where its data begins)."""
    pairs = [
        pair("general.architecture", 8, text("x")),
        pair("general.alignment", 4, struct.pack("<I", 32)),
        pair("t", 9, array(8, 2, text("a") + text("bc"))),
        pair("f", 9, array(6, 2, struct.pack("<2f", 1, 2))),
        pair("n", 9, array(9, 1, array(7, 2, b"\0\1"))),
    ]
    lines = [line("a", (32, 2), 8), line("b", (3,), 0, 96), line("c", (32, 1), 3, 128)]
    raw = build(lines, pairs, data=bytes(160))
    return raw, len(raw) - 160


def test_every_damaged_byte(tiny, tmp_path):
    raw, end = tiny
    path, loaded = tmp_path / "m.gguf", 0
    assert load_or_refuse(path, raw)
    for at in range(end):
        old = raw[at]
        for new in {old ^ (1 << bit) for bit in range(8)} | {0, 0xFF, (old + 1) & 255, (old - 1) & 255} - {old}:
            loaded += load_or_refuse(path, raw[:at] + bytes([new]) + raw[at + 1 :])
    assert loaded > 0  # a changed letter of a name is still a good file


def test_every_place_for_a_huge_number(tiny, tmp_path):
    raw, end = tiny
    for at in range(end - 8):
        for number in (2**32 - 1, 2**63, 2**64 - 1, 2**24 + 1, 0):
            load_or_refuse(tmp_path / "m.gguf", raw[:at] + struct.pack("<Q", number) + raw[at + 8 :])


def test_cut_off_anywhere(tiny, tmp_path):
    raw, _ = tiny
    needed = len(raw) - 12  # the last tensor has 20 bytes of its 32
    for length in range(len(raw)):
        assert load_or_refuse(tmp_path / "m.gguf", raw[:length]) == (length >= needed), length


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 12), st.binary(max_size=9), st.integers(0, 9)), max_size=4))
def test_any_edits(tiny, tmp_path_factory, edits):
    raw, _ = tiny
    for at, new, gone in edits:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + gone :]
    load_or_refuse(tmp_path_factory.getbasetemp() / "edited.gguf", raw)


# ---- writing ----


def test_writing_asks_for_one_tensor_at_a_time(tmp_path):
    asked = []

    def load(name):
        part = next(tmp_path.glob(".m.gguf.*.part"))
        asked.append((name, part.stat().st_size))
        return CODECS.card("f32").make().encode(torch.zeros(1 << 16))

    write_gguf(tmp_path / "m.gguf", {}, {name: ("f32", (1 << 16,)) for name in "abc"}, load)
    assert [name for name, _ in asked] == ["a", "b", "c"]
    sizes = [size for _, size in asked]
    assert sizes[1] >= 1 << 18 and sizes[2] >= 2 << 18  # the earlier ones are in the file, not in memory
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "cannot write")])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, number, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def fail(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=words) as caught:
        write_gguf(path, {}, {}, {}.__getitem__)
    assert caught.value.exit_code == 1 and path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_failing_source_leaves_nothing(tmp_path):
    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(tmp_path / "m.gguf", {}, {"w": ("f32", (1,))}, fail)
    with pytest.raises(RunError):
        write_gguf(tmp_path / "nowhere" / "m.gguf", {}, {}, {}.__getitem__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [[1, "a"], [1, 0.5], [True, 1], None, 1 << 64, [-1, 1 << 63], {}, [[1]], 1e300])
def test_metadata_that_does_not_fit_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="'k'"):
        write_gguf(tmp_path / "m.gguf", {"k": value}, {}, {}.__getitem__)


@pytest.mark.parametrize("spec", [("q8_0", (33,)), ("q5_9", (32,)), ("f32", (1, 1, 1, 1, 1))])
def test_tensors_that_do_not_fit_are_refused(tmp_path, spec):
    with pytest.raises(UserError, match="'w'"):
        write_gguf(tmp_path / "m.gguf", {}, {"w": spec}, {}.__getitem__)


def test_pages_of_a_file_leave_memory_and_come_back(tmp_path: Path) -> None:
    """A model's matrices are read once, into tiles: the file need not stay beside them."""
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * (1 << 12))
    _, mapped = map_file(path)

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        return sum(
            int(next(x for x in lines if x.startswith("Rss:")).split()[1]) for line in lines if str(path) in line
        )

    before = mapped.clone()
    assert resident() >= 1000
    forget_pages(mapped[512:].view(-1, 256))
    assert resident() == 0
    assert torch.equal(mapped, before) and resident() >= 1000
    forget_pages(before)
    assert torch.equal(mapped, before), "memory that is no file is left alone"
