"""A prefix as a file: from one process to another, for the same model and settings, undamaged, or not at all."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from starts import is_warm, start

from stretto import LLM, Sampling
from stretto.convert.prefix_file import MAX_HEADER, hash_model
from stretto.core.env import Env
from stretto.core.errors import FitError, RunError, UserError
from stretto.core.memory import available_memory

TEXT = "the same beginning of every one of these texts, long enough to be kept, and "
SEEN = Sampling(temperature=0, max_tokens=8, logprobs=3)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Path]:
    llm = LLM(folder, backend="native", draft="none", note=lambda line: None)
    path = tmp_path_factory.mktemp("prefixes") / "one.safetensors"
    assert llm.prefixes.save(TEXT, path) == len(llm.encode(TEXT))
    return llm, path


def opened(folder: Path, **settings: Any) -> LLM:
    return LLM(folder, **{"backend": "native", "draft": "none", **settings}, note=lambda line: None)


@pytest.mark.parametrize("draft", ["none", "suffix"])
def test_a_later_engine_goes_on_with_the_bits_of_a_cold_start(
    folder: Path, saved: tuple[LLM, Path], draft: str
) -> None:
    cold = opened(folder, prefix_cache="none").generate([TEXT, TEXT + "abc"], SEEN)
    warm = opened(folder, draft=draft)
    assert warm.prefixes.load(saved[1]) == len(warm.encode(TEXT))
    found = warm.generate([TEXT, TEXT + "abc"], SEEN)
    assert [(r.token_ids, r.logprobs) for r in found] == [(r.token_ids, r.logprobs) for r in cold]
    assert [r.usage.cached_tokens for r in found] == [64, 76]
    warm.engine.runner.cache.check()


SCRIPT = """
import sys
from stretto import LLM, Sampling
llm = LLM({model!r}, backend="native", draft="none", note=lambda line: None)
assert llm.prefixes.load({path!r}) == 76
found = llm.generate([{text!r}], Sampling(temperature=0, max_tokens=8))[0]
assert found.usage.cached_tokens == 64, found.usage
assert llm.prefixes.save({text!r}, {again!r}) == 76
print(*found.token_ids)
print(*[name for name in ("torch", "numpy", "safetensors") if name in sys.modules])
"""


def test_a_process_without_torch_reads_and_writes_it(folder: Path, env: Env, tmp_path: Path) -> None:
    """What an engine with torch saved; and what it saves itself is the same file."""
    path, again = tmp_path / "one", tmp_path / "two"
    llm = start(folder, env, draft="none")
    assert not is_warm(llm) and llm.program is not None
    llm.prefixes.save(TEXT, path)
    want = llm.generate([TEXT], Sampling(temperature=0, max_tokens=8))[0].token_ids
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRETTO_")} | {"STRETTO_CACHE": str(env.cache)}
    script = SCRIPT.format(model=str(folder), path=str(path), again=str(again), text=TEXT)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=60)
    assert found.returncode == 0, found.stderr
    tokens, modules = found.stdout.splitlines()
    assert tuple(map(int, tokens.split())) == want and modules == ""
    assert path.read_bytes() == again.read_bytes()


def test_it_is_a_private_safetensors_file(saved: tuple[LLM, Path]) -> None:
    llm, path = saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name], "a part is left"
    with safe_open(path, "pt") as file:
        assert file.get_tensor("tokens").tolist() == llm.encode(TEXT)
        assert file.metadata()["kv"] == llm.engine.runner.sizes.kv
        for i, a in enumerate(llm.engine.runner.cache.pools.layout.arrays):
            assert file.get_tensor(f"pages.{i}").shape == (a.layers, 76, a.numbers * a.item_bytes)


def test_every_flipped_byte_is_refused(saved: tuple[LLM, Path], tmp_path: Path) -> None:
    """A third of the header, its end, and a sample of the rest."""
    llm, path = saved
    data, bad = path.read_bytes(), tmp_path / "bad"
    header = 8 + int.from_bytes(data[:8], "little")
    for place in (*range(0, header, 3), *range(header - 8, len(data), 9973), len(data) - 1):
        for flip in (1, 0x2A) if data[place] == 0x20 else (1,):  # 0x2A: a line feed, which JSON takes for a space
            bad.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            with pytest.raises(UserError):
                llm.prefixes.read(bad)
    llm.prefixes.read(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 400, -1])
def test_a_file_of_another_length_is_refused(saved: tuple[LLM, Path], tmp_path: Path, size: int) -> None:
    llm, path = saved
    bad = tmp_path / "bad"
    bad.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="is no prefix, or damaged"):
        llm.prefixes.read(bad)
    bad.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="in place of"):
        llm.prefixes.read(bad)


def test_sizes_are_checked_before_memory_is_taken(saved: tuple[LLM, Path], tmp_path: Path) -> None:
    """A header that promises more than there is, or as much as a machine has; a file that is all hole."""
    llm, path = saved
    data, bad = path.read_bytes(), tmp_path / "bad"
    for claim in (MAX_HEADER + 1, 1 << 62, available_memory()):
        bad.write_bytes(claim.to_bytes(8, "little") + data[8:])
        os.truncate(bad, 1 << 40)
        with pytest.raises(UserError, match="does not begin with a header"):
            llm.prefixes.read(bad)
    length = int.from_bytes(data[:8], "little")
    for old, new in ((b'"shape":[76]', b'"shape":[2000000000]'), (b'"shape":[76]', b'"shape":[-76]'),
                     (b'"shape":[76]', b'"shape":[76.0]'), (b'"firsts":"[0]"', b'"firsts":"[16]"'),
                     (b'"ends":"[]"', b'"ends":"[76]"'), (b'{"__meta', b"[" * 100_000 + b'{"__meta')):  # fmt: skip
        text = data[8 : 8 + length].replace(old, new, 1)
        assert text != data[8 : 8 + length]
        bad.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        with pytest.raises(UserError):
            llm.prefixes.read(bad)


def test_tokens_that_the_model_does_not_know_are_refused(saved: tuple[LLM, Path], tmp_path: Path) -> None:
    llm, bad = saved[0], tmp_path / "bad"
    prefix = llm.prefixes.read(saved[1])
    llm.prefixes.write(replace(prefix, tokens=(10**6, *prefix.tokens[1:])), bad)
    with pytest.raises(UserError, match="tokens that this model does not know"):
        llm.prefixes.read(bad)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"kv": "int8"}, "kv"), ({"prefill": "int8"}, "arithmetic"), ({"backend": "torch"}, "arithmetic")],
)
def test_other_settings_are_named(folder: Path, saved: tuple[LLM, Path], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        opened(folder, **settings).prefixes.load(saved[1])


def test_another_model_is_refused(folder: Path, saved: tuple[LLM, Path], tmp_path: Path) -> None:
    """One weight differs, in its last byte."""
    other = tmp_path / folder.name
    other.mkdir()
    for one in folder.iterdir():
        (other / one.name).write_bytes(one.read_bytes())
    assert hash_model(other) == hash_model(folder), "where it lies does not matter"
    weights = other / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="its model differs"):
        opened(other).prefixes.load(saved[1])


def test_what_cannot_be(folder: Path, saved: tuple[LLM, Path], tmp_path: Path) -> None:
    llm, path = saved
    with pytest.raises(UserError, match="no file"):
        llm.prefixes.load(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no file"):
        llm.prefixes.load(tmp_path / "pipe")
    with pytest.raises(RunError, match="cannot be written"):
        llm.prefixes.save(TEXT, tmp_path / "missing" / "one")
    with pytest.raises(UserError, match="keeps no prefixes"):
        opened(folder, prefix_cache="none").prefixes.load(path)
    with pytest.raises(UserError, match="longer text than fits"):
        opened(folder, context=64).prefixes.load(path)
    with pytest.raises(FitError, match="does not fit"):
        opened(folder, prefix_cache="1KiB").prefixes.load(path)
