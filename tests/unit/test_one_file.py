"""What the README promises: a filler is one file, and so is a family. Files are added to a copy of the package, and the
laws find them.

A codec whose weights native kernels multiply with is one struct more: how its blocks lie in tiles.
"""

import ast
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

CHANNEL = '''
"""Two matrices with tanh between them."""

from dataclasses import dataclass

from torch import Tensor

from stretto.core.card import Can, Card
from stretto.core.channel import Channel
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear


class Added(Channel):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        d_model: int
        d_hidden: int

        def build(self) -> "Added":
            return Added(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.up = Linear(config.d_model, {"up": config.d_hidden})
        self.down = Linear(config.d_hidden, {"down": config.d_model})

    def forward(self, x_TD: Tensor, seqs: Seqs) -> Tensor:
        return self.down(self.up(x_TD, seqs).tanh(), seqs)


CARD = Card(
    name="added", make=Added.Config, tiny={"d_model": 16, "d_hidden": 8}, idea="tanh", paper="none", can=Can.PACKED
)
'''
DRAFTER = '''
"""The last token again, and again."""

from stretto.core.card import Can, Card
from stretto.core.drafter import Draft, Drafter


class Config:
    def build(self, target):
        return Added()


class Added(Drafter):
    def __init__(self) -> None:
        self._last: dict[int, int | None] = {}

    def admit(self, rid, tokens):
        self._last[rid] = tokens[-1] if tokens else None

    def propose(self, asks):
        last = [self._last[ask.rid] for ask in asks]
        return [Draft(() if t is None else (t,) * ask.max_tokens) for t, ask in zip(last, asks, strict=True)]

    def observe(self, rounds):
        for one in rounds:
            if one.verdict.emitted:
                self._last[one.rid] = one.verdict.emitted[-1]

    def release(self, rid, keep=False):
        del self._last[rid]


CARD = Card(name="added", make=Config, idea="the last token again", paper="none", can=Can.CHAIN)
'''
ORDER = '''
"""Last come, first served, unless somebody waits for ten seconds."""

from stretto.core.card import Can, Card
from stretto.core.policy import OrderPolicy


class Added(OrderPolicy):
    def order(self, jobs, now):
        return sorted(jobs, key=lambda job: (now - job.arrived < 10, -job.rid))


CARD = Card(name="added", make=Added, idea="last come, first served", paper="none", can=Can(0))
'''
JUDGE = '''
"""The drafts of a chain that plain decoding would have given."""

from stretto.core.card import Can, Card
from stretto.core.drafter import Verdict
from stretto.core.judge import Head, Judge


class Added(Judge):
    can = Can.CHAIN | Can.SAMPLED
    head: Head = "picks"

    def judge(self, draft, rows, position, noise):
        kept = 0
        while kept < len(draft) and draft.tokens[kept] == rows[kept]:
            kept += 1
        return Verdict(tuple(range(1, kept + 1)), tuple(rows[: kept + 1]))


CARD = Card(name="added", make=Added, idea="as plain decoding", paper="none", can=Added.can)
'''
CODEC = '''
"""IQ4_NL: 32 nibbles name bytes of a table, which share a scale. Format: GGUF (ggml block_iq4_nl). Read only."""

import torch
from torch import Tensor

from stretto.codecs._shared import BlockCodec, nibbles
from stretto.core.card import Can, Card

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class IQ4_NL(BlockCodec):
    """18 bytes for 32 values."""

    name, block, block_bytes = "iq4_nl", 32, 18
    floats = (torch.float16, 0, 2)
    gguf_type, gguf_file_type = 20, 25

    def unpack(self, blocks: Tensor) -> Tensor:
        table = torch.tensor(TABLE, dtype=torch.float32, device=blocks.device)
        return table[nibbles(blocks[:, 2:]).int()].mul_(self.scales(blocks))


CARD = Card(name="iq4_nl", make=IQ4_NL, idea="nibbles name bytes of a table", paper="GGUF", can=Can.NATIVE)
'''
STRUCT = """
inline constexpr uint8_t IQ4_NL[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

STRETTO_FORMAT(iq4_nl) : Simple<Looked<IQ4_NL>, 7, false> {
    static constexpr int BLOCK_BYTES = 18;
    static void block(const uint8_t* p, uint8_t* record, int lane, uint8_t (*codes)[HALF][GROUP]) {
        file_nibbles(p + 2, codes[0][lane]);
        put(record, lane, read_u16(p), 0);
    }
};

"""
MIXER_CARD = """
CARD = Card(
    name="added", make=Retention.Config, tiny={"d_model": 16, "num_heads": 4}, idea="retention", paper="2307.08621",
    can=Retention.can,
)
"""
FAMILY = '''
"""Seed-OSS: the Llama skeleton, where q, k and v have biases and the output says so by a key of its own."""

from dataclasses import replace

from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER, context
from stretto.models.skeleton import GGUF_SKELETON
from stretto.models.table import changed
from stretto.models.ways import flag

FAMILY = Family(
    name="added",
    hf={"SeedOssForCausalLM": "seed_oss"},
    gguf=("seed_oss",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
            {
                "head_dim": attention.head_dim(128),
                "qkv_bias": flag("attention_bias", True),
                "out_bias": flag("attention_out_bias", False),
            }
        ),
            channel=dense.PART.having({"bias": flag("mlp_bias", False)}),
        )
    },
    outer=changed(OUTER, {"context": context(524288)}),
    gguf_skeleton=replace(GGUF_SKELETON, channel_norm="post_attention_norm"),
    tiny={"head_dim": 8, "attention_out_bias": True},
)
'''


def mixer() -> str:
    """The mixer of the example, as its docstring says: moved to a file, with a card at the end."""
    source = (ROOT / "examples" / "add_a_mixer.py").read_text(encoding="utf-8")
    return source[: source.index("def main")].replace("import Can", "import Can, Card") + MIXER_CARD


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A file for `folder`, named as its filler, and which tests of `tests` must find it: at least this many."""

    folder: str
    make: Callable[[], str]
    tests: tuple[str, ...]
    least: int
    name: str = "added"
    chosen: str = "added"  # of the tests, an expression for -k
    struct: str = ""  # in C++


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of the copy: how the tests ended, every test, and the names in every registry."""

    done: subprocess.CompletedProcess[str]
    found: Any
    names: dict[str, list[str]]


EXAMPLES = [
    Example(
        folder="mixers",
        make=mixer,
        tests=("tests/contracts/test_mixer.py", "tests/engine/test_native.py"),
        least=25,
    ),
    Example(
        folder="channels",
        make=lambda: CHANNEL,
        tests=("tests/contracts/test_channel.py", "tests/engine/test_native.py"),
        least=25,
    ),
    Example(
        folder="drafters",
        make=lambda: DRAFTER,
        tests=("tests/contracts/test_drafter.py", "tests/engine/test_drafters.py"),
        least=8,
    ),
    Example(
        folder="engine/policies/order",
        make=lambda: ORDER,
        tests=("tests/unit/test_policies.py", "tests/engine/test_simulator.py"),
        least=4,
    ),
    Example(folder="models", make=lambda: FAMILY, tests=("tests/contracts/test_family.py",), least=4),
    Example(folder="engine/judges", make=lambda: JUDGE, tests=("tests/contracts/test_judge.py",), least=3),
    Example(
        folder="codecs",
        make=lambda: CODEC,
        tests=("tests/contracts/test_codec.py", "tests/unit/test_native_linear.py"),
        least=14,
        name="iq4_nl",
        # what compares levels would compile the kernels once for each
        chosen="iq4_nl and not bits_depend and not coarse or the_cards or ggml_types",
        struct=STRUCT,
    ),
]


@functools.cache
def copied(folder: Path, examples: tuple[Example, ...]) -> Copied:
    """A copy of the package in `folder` with the file of every example, and what its laws said, all in one process."""
    for name in ("stretto", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "tools").mkdir()
    for example in examples:
        (folder / "stretto" / example.folder / f"{example.name}.py").write_text(example.make())
        if example.struct:
            formats = folder / "stretto" / "kernels" / "linear" / "formats.h"
            before, end, after = formats.read_text().partition("// -- by number")
            formats.write_text(before + example.struct.lstrip() + end + after)
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    chosen = " or ".join(f"({word})" for word in dict.fromkeys(example.chosen for example in examples))
    tests = dict.fromkeys(test for example in examples for test in example.tests)
    words = ["pytest", "-q", "-p", "no:cacheprovider", "--junitxml=found.xml", "-k", chosen, *tests]
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    listed = (
        "from stretto.core.card import REGISTRIES; from stretto.convert.model_file import families;"
        "print({r.package: r.names() for r in REGISTRIES} | {'stretto.models': [f.name for f in families()]})"
    )
    names = subprocess.run([sys.executable, "-P", "-c", listed], env=env, capture_output=True, text=True, check=True)
    return Copied(done, ElementTree.parse(folder / "found.xml"), ast.literal_eval(names.stdout))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For copies with our kernels, and with a struct more in them, which have to be compiled."""
    return tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("structs")


@pytest.mark.timeout(600)  # it compiles the kernels
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.folder)
def test_one_file_is_enough(example: Example, folders: tuple[Path, Path]) -> None:
    has_struct = bool(example.struct)
    copy = copied(folders[has_struct], tuple(one for one in EXAMPLES if bool(one.struct) == has_struct))
    assert copy.done.returncode == 0, copy.done.stdout[-6000:]
    files = [test.removesuffix(".py").replace("/", ".") for test in example.tests]
    passed = [
        case
        for case in copy.found.iter("testcase")
        if case.get("classname") in files and example.name in str(case.get("name")) and not len(case)
    ]
    assert len(passed) >= example.least, [case.get("name") for case in passed]
    assert copy.names[f"stretto.{example.folder.replace('/', '.')}"].count(example.name) == 1
