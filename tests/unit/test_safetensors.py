"""safetensors files: against the `safetensors` package both ways, and against damage of every header byte."""

import errno
import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stretto.convert.safetensors_ import SafetensorsFile, open_checkpoint, write_safetensors
from stretto.core.card import CODECS
from stretto.core.errors import ModelFileError, RunError, UserError

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "h": torch.randn(3, 5).half(),
        "w": torch.randn(4, 6),
        "b.bias": torch.randn(7).bfloat16(),
        "cube": torch.randn(2, 3, 4),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }


def test_we_read_what_the_package_writes(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt", "ü": "x"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.metadata == {"format": "pt", "ü": "x"}
    assert sorted(file.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        stored = file.stored(name)
        assert DTYPES[stored.codec.name] == tensor.dtype and stored.shape == tuple(tensor.shape)
        assert stored.data.shape[:-1] == tensor.shape[:-1] and stored.nbytes == tensor.nbytes
        assert torch.equal(stored.decode(tensor.dtype), tensor)


def test_the_package_reads_what_we_write(tmp_path):
    tensors, path = some_tensors(), tmp_path / "m.safetensors"
    codecs = {dtype: CODECS.card(name).make() for name, dtype in DTYPES.items()}
    stored = {name: codecs[tensor.dtype].encode(tensor) for name, tensor in tensors.items()}
    spec = {name: (p.codec.name, p.shape) for name, p in stored.items()}
    write_safetensors(path, spec, stored.__getitem__, {"stretto": "{}"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"stretto": "{}"}
    ours = SafetensorsFile(path)
    assert all(torch.equal(ours.stored(name).data, stored[name].data) for name in tensors)
    for name in tensors:
        assert ours.stored(name).data.data_ptr() % tensors[name].element_size() == 0


def test_rows_of_int8_are_two_tensors(tmp_path):
    """Of any width, and no tensor at an odd address."""
    x = {"a": torch.randn(3, 5), "b": torch.randn(7, 33), "c": torch.randn(1, 1)}
    ours = {name: CODECS.card("int8").make().encode(value) for name, value in x.items()}
    ours |= {name: CODECS.card(name).make().encode(torch.randn(3)) for name in ("bf16", "f32")}
    table = {name: (stored.codec.name, stored.shape) for name, stored in ours.items()}
    write_safetensors(tmp_path / "m.safetensors", table, ours.__getitem__)
    theirs = load_file(tmp_path / "m.safetensors")
    for name, value in x.items():
        codes, scales = theirs[name], theirs[f"{name}_scale"]
        assert (codes.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float32, (len(value), 1))
        assert torch.equal(codes * scales, ours[name].decode(torch.float32))
    assert len(theirs) == 8 and torch.equal(theirs["bf16"].float(), ours["bf16"].decode(torch.float32))
    data = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    for name, held in theirs.items():
        assert header[name]["data_offsets"][0] % held.element_size() == 0


def test_packed_is_a_view_of_the_file(tmp_path):
    save_file({"w": torch.ones(9)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert file.stored("w").data.data_ptr() == file.stored("w").data.data_ptr()


def test_other_dtypes_are_refused_when_asked_for(tmp_path):
    path = tmp_path / "m.safetensors"
    others = {
        "ids": torch.arange(3),
        "bytes": torch.zeros(5, dtype=torch.uint8),
        "f8": torch.zeros(4).to(torch.float8_e4m3fn),
    }
    save_file(others | {"w": torch.ones(2)}, path)
    file = SafetensorsFile(path)
    assert torch.equal(file.stored("w").decode(torch.float32), torch.ones(2))
    for name, dtype in (("ids", "I64"), ("bytes", "U8"), ("f8", "F8_E4M3")):
        with pytest.raises(ModelFileError, match=f"'{name}' has dtype '{dtype}'"):
            file.stored(name)
    with pytest.raises(ModelFileError, match=r"no tensor 'x'"):
        file.stored("x")


# ---- hand-made files ----


def entry(shape=(2,), begin=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def build(header, data=bytes(8), length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = {"w": entry()}
E8 = json.dumps(entry())
BAD = {
    "empty": (b"", "empty"),
    "seven bytes": (bytes(7), "cut off"),
    "length 2^63": (build(GOOD, length=2**63), "cut off"),
    "length 2^64-1": (build(GOOD, length=2**64 - 1), "cut off"),
    "length one more": (build(GOOD, b"", length=len(json.dumps(GOOD)) + 1), "cut off"),
    "cut data": (build(GOOD, bytes(7)), "'w' ends at byte 8 of 7"),
    "rest": (build(GOOD, bytes(9)), "1 bytes after"),
    "rest without tensors": (build({}, bytes(1)), "1 bytes after"),
    "overlap": (build({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)), "'b' overlaps"),
    "same place": (build({"a": entry(), "b": entry()}), "'b' overlaps"),
    "hole": (build({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20)), "'b' leaves a hole"),
    "hole at the start": (build({"a": entry(begin=4, end=12)}, bytes(12)), "'a' leaves a hole"),
    "size": (build({"w": entry((3,))}), "'w' has 8 bytes, not the size"),
    "size of an empty one": (build({"w": entry((0, 2))}), "'w' has 8 bytes, not the size"),
    "half bytes": (build({"w": entry((15,), dtype="F4")}), "'w' has 8 bytes, not the size"),
    "backwards": (build({"w": entry(begin=8, end=0)}), "data_offsets"),
    "negative offset": (build({"w": entry(begin=-8, end=0)}), "data_offsets"),
    "three offsets": (build({"w": entry() | {"data_offsets": [0, 4, 8]}}), "data_offsets"),
    "offset 2^63": (build({"w": entry((2**61 - 1,), 0, 2**63)}), "impossible shape"),
    "end 2^63": (build({"w": entry(end=2**63)}), "not the size"),
    "place 2^63": (build({"w": entry(begin=2**63, end=2**63 + 8)}), "ends at byte"),
    "negative dim": (build({"w": entry((-1, -2))}), "impossible shape"),
    "negative zero dim": (build({"w": entry((-1, 0), 0, 0)}, b""), "impossible shape"),
    "huge dims of nothing": (build({"w": entry((0, 2**62, 2**62), 0, 0)}, b""), "impossible shape"),
    "nine dims": (build({"w": entry((1,) * 8 + (2,))}), "impossible shape"),
    "float dim": (build({"w": entry((2.0,))}), "impossible shape"),
    "true dim": (build({"w": entry((True, 2))}), "impossible shape"),
    "text dim": (build({"w": entry() | {"shape": "2"}}), "impossible shape"),
    "float offset": (build({"w": entry(end=8.0)}), "data_offsets"),
    "number dtype": (build({"w": entry(dtype=1)}), "dtype"),
    "missing key": (build({"w": {"dtype": "F32", "shape": [2]}}), "exactly"),
    "extra key": (build({"w": entry() | {"x": 1}}), "exactly"),
    "not a map": (build({"w": [1]}), "exactly"),
    "name twice": (
        build(f'{{"w": {E8}, "v": {json.dumps(entry(begin=8, end=16))}, "w": {E8}}}'.encode(), bytes(16)),
        "name 'w' twice",
    ),
    "key twice": (build(f'{{"w": {E8[:-1]}, "dtype": "F32"}}}}'.encode()), "name 'dtype' twice"),
    "a list": (build(b"[]", b""), "not a JSON object"),
    "not json": (build(b"{", b""), "valid JSON"),
    "not utf-8": (build(b'{"\xff": 1}', b""), "valid JSON"),
    "deep": (build(b"[" * 200_000, b""), "valid JSON"),
    "many": (build(b"[" + b"[]," * (1 << 22) + b"1]", b""), "too many values"),
    "long number": (build(b'{"w": ' + b"9" * 5000 + b"}", b""), "valid JSON"),
    "metadata list": (build({"__metadata__": []}, b""), "__metadata__"),
    "metadata number": (build({"__metadata__": {"a": 1}}, b""), "__metadata__"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(tmp_path, case):
    raw, words = BAD[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=words) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 3


def test_a_header_of_more_than_100_mb(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:  # sparse
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)
    with pytest.raises(ModelFileError, match="header of 100000001 bytes"):
        SafetensorsFile(path)


def test_names_of_control_characters_are_escaped(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(build({"\x1b[2J" + "x" * 200: entry((3,))}))
    with pytest.raises(ModelFileError) as caught:
        SafetensorsFile(path)
    assert "\\x1b[2J" in str(caught.value) and "\x1b" not in str(caught.value) and "x" * 100 not in str(caught.value)


def load_or_refuse(path, raw: bytes) -> bool:
    """True: it opened. Anything but a ModelFileError fails the test."""
    path.unlink(missing_ok=True)  # a new file: a mapped one must not shrink, and replacing bytes waits for the disk
    path.write_bytes(raw)
    try:
        file = SafetensorsFile(path)
        for name in file.names():
            file.stored(name).decode(torch.float32)
    except ModelFileError as e:
        assert str(path) in str(e)
        return False
    return True


def test_every_damaged_byte_and_every_length(tmp_path):
    path = tmp_path / "m.safetensors"
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry(),
        "b": entry((2, 2), 8, 16, "F16"),
        "c": entry((0,), 16, 16),
    }
    raw = build(header, bytes(16))
    assert load_or_refuse(path, raw)
    for at in range(len(raw) - 16):
        old = raw[at]
        for new in {old ^ (1 << bit) for bit in range(8)} | {0, 0xFF, (old + 1) & 255, (old - 1) & 255} - {old}:
            load_or_refuse(path, raw[:at] + bytes([new]) + raw[at + 1 :])
    for length in range(len(raw)):
        assert not load_or_refuse(path, raw[:length]), length


# ---- directories ----


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2), "extra": torch.ones(1)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"})
    return tmp_path


def index(directory, weight_map, **rest):
    text = json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map} | rest)
    (directory / "model.safetensors.index.json").write_text(text)


def test_shards_are_one_checkpoint(sharded):
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.names() == ["b", "a"] and checkpoint.metadata == {"format": "pt"}
    assert torch.equal(checkpoint.stored("a").decode(torch.float32), torch.ones(2))
    assert torch.equal(checkpoint.stored("b").decode(torch.float32), torch.zeros(3))
    with pytest.raises(ModelFileError, match="no tensor 'extra'"):
        checkpoint.stored("extra")


def test_one_file_is_a_checkpoint(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert open_checkpoint(str(tmp_path)).names() == ["a"]


def test_linked_shards_are_followed(sharded, tmp_path_factory):
    """The caches of hubs are directories of links."""
    elsewhere = tmp_path_factory.mktemp("blobs") / "blob"
    (sharded / "two.safetensors").rename(elsewhere)
    (sharded / "two.safetensors").symlink_to(elsewhere)
    assert torch.equal(open_checkpoint(sharded).stored("b").decode(torch.float32), torch.zeros(3))


@pytest.mark.parametrize(
    "name", ["../two.safetensors", "x/../../y", "/etc/passwd", "..", "", "C:\\x", "C:x", "a\\..\\b", "a\0b"]
)
def test_shards_outside_the_directory_are_refused(sharded, name):
    index(sharded, {"a": "one.safetensors", "b": name})
    with pytest.raises(ModelFileError, match="names the shard") as caught:
        open_checkpoint(sharded)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"b": "three.safetensors"}, "shard 'three.safetensors', which is missing"),
        ({"b": "."}, "names the shard|missing"),
        ({"b": "one.safetensors"}, "'b' is not in 'one.safetensors'"),
        ({"b": 1}, "weight_map"),
        ([], "weight_map"),
        (None, "weight_map"),
    ],
)
def test_a_wrong_index_is_named(sharded, weight_map, words):
    index(sharded, weight_map)
    with pytest.raises(ModelFileError, match=words):
        open_checkpoint(sharded)


def test_an_index_that_names_a_tensor_twice(sharded):
    (sharded / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}'
    )
    with pytest.raises(ModelFileError, match="'a' twice"):
        open_checkpoint(sharded)


def test_directories_without_weights(tmp_path):
    with pytest.raises(ModelFileError, match="neither"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="not a directory") as caught:
        open_checkpoint(tmp_path / "none")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="not a file") as caught:
        SafetensorsFile(tmp_path / "none")
    assert caught.value.exit_code == 2


# ---- writing ----


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def fail(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="disk is full"):
        write_safetensors(path, {}, {}.__getitem__)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'w'.*q8_0"):
        write_safetensors(tmp_path / "m", {"w": ("q8_0", (32,))}, {}.__getitem__)
    with pytest.raises(UserError, match="__metadata__"):
        write_safetensors(tmp_path / "m", {"__metadata__": ("f32", (1,))}, {}.__getitem__)
    assert list(tmp_path.iterdir()) == []
