"""The registry of quantized checkpoints: a method is one file, and what is not known is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Checkpoints
from safetensors.torch import load_file

from stretto.convert import quantized
from stretto.convert.load import load_model
from stretto.convert.model_file import open_model
from stretto.core.errors import ModelFileError

DOUBLED = '''
"""Every number is twice what the file holds."""

import torch

from stretto.convert.quantized import Method
from stretto.core.errors import ModelFileError


class Doubled:
    def __init__(self, file):
        self.file, self.names, self.held = file, file.names, file.held

    def stored(self, name):
        stored = self.file.stored(name)
        return stored.codec.encode(2 * stored.decode(torch.float32))


def check(quantization, where):
    if quantization.get("factor") != 2:
        raise ModelFileError(f"{where}: quantization_config.factor is {quantization.get('factor')!r}")


METHOD = Method(idea="twice the numbers", check=check, read=Doubled)
'''


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def announcing(source: Path, to: Path, quantization: Any) -> Path:
    """A copy of a checkpoint with a `quantization_config`."""
    shutil.copytree(source, to)
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": quantization}
    (to / "config.json").write_text(json.dumps(config))
    return to


UNKNOWN: dict[str, tuple[Any, str]] = {
    "another method": ({"quant_method": "gptq", "bits": 4}, r"'gptq' is not supported[\s\S]*int8 rows"),
    "nearly ours": ({"quant_method": "compressed-tensor"}, "did you mean compressed-tensors"),
    "the name of our file": ({"quant_method": "compressed_tensors"}, "did you mean compressed-tensors"),
    "no method": ({"bits": 4}, "None is not supported"),
    "no settings": ("compressed-tensors", "'compressed-tensors' is not supported"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_methods_are_refused_by_name(case: str, saved: Checkpoints, tmp_path: Path) -> None:
    quantization, words = UNKNOWN[case]
    with pytest.raises(ModelFileError, match=words):
        open_model(announcing(saved("llama")[0], tmp_path / "m", quantization))


def test_a_method_is_one_file(saved: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "doubled.py").write_text(DOUBLED)
    monkeypatch.setattr(quantized, "__path__", [*quantized.__path__, str(tmp_path / "methods")])
    source, _ = saved("llama")
    lm = load_model(open_model(announcing(source, tmp_path / "m", {"quant_method": "doubled", "factor": 2})))
    assert torch.equal(lm.norm.weight, 2 * load_file(source / "model.safetensors")["model.norm.weight"])
    with pytest.raises(ModelFileError, match=r"quantization_config\.factor is 3"):
        open_model(announcing(source, tmp_path / "n", {"quant_method": "doubled", "factor": 3}))
    with pytest.raises(ModelFileError, match=r"did you mean doubled\?"):
        open_model(announcing(source, tmp_path / "o", {"quant_method": "doubles"}))
