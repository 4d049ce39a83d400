"""What the README promises: a filler is one file, and so is a family. Files are added to a copy of the package, and the
laws find them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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


class Added(Drafter):
    def __init__(self) -> None:
        self._last: dict[int, int | None] = {}

    def admit(self, rid, tokens):
        self._last[rid] = tokens[-1] if tokens else None

    def propose(self, asks):
        last = [self._last[ask.rid] for ask in asks]
        return [Draft(() if t is None else (t,) * ask.max_nodes) for t, ask in zip(last, asks, strict=True)]

    def observe(self, rid, draft, verdict):
        if verdict.emitted:
            self._last[rid] = verdict.emitted[-1]

    def release(self, rid):
        del self._last[rid]


CARD = Card(name="added", make=Added, idea="the last token again", paper="none", can=Can.CHAIN)
'''
MIXER_CARD = """
CARD = Card(
    name="added", make=Retention.Config, tiny={"d_model": 16, "num_heads": 4}, idea="retention", paper="2307.08621",
    can=Retention.can,
)
"""
FAMILY = '''
"""Seed-OSS: the Llama skeleton, where q, k and v have biases and the output says so by a key of its own."""

from dataclasses import replace

from stretto.models.family import Family
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER, context
from stretto.models.skeleton import GGUF_SKELETON
from stretto.models.table import changed
from stretto.models.ways import flag

FAMILY = Family(
    name="added",
    hf={"SeedOssForCausalLM": "seed_oss"},
    gguf=("seed_oss",),
    mixers={
        "layer": attention.PART.having(
            {
                "head_dim": attention.head_dim(128),
                "qkv_bias": flag("attention_bias", True),
                "out_bias": flag("attention_out_bias", False),
            }
        )
    },
    channel=dense.PART.having({"bias": flag("mlp_bias", False)}),
    outer=changed(OUTER, {"context": context(524288)}),
    gguf_skeleton=replace(GGUF_SKELETON, channel_norm="post_attention_norm"),
    tiny={"head_dim": 8, "attention_out_bias": True},
)
'''


def mixer() -> str:
    """The mixer of the example, as its docstring says: moved to a file, with a card at the end."""
    source = (ROOT / "examples" / "add_a_mixer.py").read_text(encoding="utf-8")
    return source[: source.index("def main")].replace("import Can", "import Can, Card") + MIXER_CARD


# Where the file goes, what it holds, and tests that must have run for it.
FILES = {
    "mixers": (mixer, ["tests/contracts/test_mixer.py", "tests/engine/test_native.py"], 25),
    "channels": (lambda: CHANNEL, ["tests/contracts/test_channel.py", "tests/engine/test_native.py"], 25),
    "drafters": (lambda: DRAFTER, ["tests/contracts/test_drafter.py"], 2),
    "models": (lambda: FAMILY, ["tests/contracts/test_family.py"], 4),
}


@pytest.mark.parametrize("folder", FILES)
def test_one_file_is_enough(folder: str, tmp_path: Path) -> None:
    make, tests, least = FILES[folder]
    for name in ("stretto", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "tools").mkdir()
    (tmp_path / "stretto" / folder / "added.py").write_text(make())
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "added", *tests]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed >= least, done.stdout
    listed = (
        "from stretto.core.card import REGISTRIES; from stretto.convert.model_file import families;"
        "print([r.names() for r in REGISTRIES], [f.name for f in families()])"
    )
    names = subprocess.run([sys.executable, "-P", "-c", listed], env=env, capture_output=True, text=True, check=True)
    assert names.stdout.count("'added'") == 1
