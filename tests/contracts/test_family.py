"""The laws of families (stretto/models/family.py), over every one with both file formats.

The model is the family's `tiny`, made by transformers with random weights; names and keys of GGUF files are those of
the gguf package.
"""

import json
from pathlib import Path

import gguf
import pytest
from checkpoints import Checkpoints, close, same_tensors, tiny, whole
from safetensors.torch import load_file

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError
from stretto.models.family import Family

FAMILIES = pytest.mark.parametrize("family", [f for f in families() if f.gguf], ids=lambda f: f.name)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@FAMILIES
def test_logits_equal_transformers(family: Family, saved: Checkpoints) -> None:
    path, want = saved(family.name, tiny(family.name))
    model = open_model(path)
    assert model.family.name == family.name
    close(whole(load_model(model)), want)


@FAMILIES
def test_there_and_back_is_the_same_file(family: Family, saved: Checkpoints, tmp_path: Path) -> None:
    """HF -> ours -> GGUF -> ours -> HF: the same settings, and the same tensors as far as formats agree on them."""
    source, want = saved(family.name, tiny(family.name))
    convert(source, tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    model, there = open_model(source), open_model(tmp_path / "m.gguf")
    assert there.config == open_model(tmp_path / "back").config == model.config
    close(whole(load_model(there)), want)
    same_tensors(model, load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors"))


@FAMILIES
def test_the_gguf_package_knows_every_name_we_write(family: Family, saved: Checkpoints, tmp_path: Path) -> None:
    convert(saved(family.name, tiny(family.name))[0], tmp_path / "m.gguf", "gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    named = reader.fields["general.architecture"].contents()
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == named)
    count = reader.fields[f"{named}.block_count"].contents()
    names = {gguf.TENSOR_NAMES[t].format(bid=i) for t in gguf.MODEL_TENSORS[arch] for i in range(count)}
    assert {t.name.removesuffix(".weight").removesuffix(".bias") for t in reader.tensors} <= names
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM, gguf.Keys.ShortConv)
    keys = (value for group in groups for value in vars(group).values() if isinstance(value, str))
    assert {key for key in reader.fields if key.startswith(f"{named}.")} <= {k.replace("{arch}", named) for k in keys}


@FAMILIES
def test_every_number_of_a_written_config_counts(family: Family, saved: Checkpoints) -> None:
    """It is read back equal; with another number in it, the model is another one, or refused."""
    config = json.loads((saved(family.name, tiny(family.name))[0] / "config.json").read_text())
    ours, written = family.read_hf(config), json.loads(json.dumps(family.to_hf(family.read_hf(config))))
    assert family.read_hf(written) == ours
    numbers = [key for key, value in written.items() if type(value) in (int, float) and value]
    assert len(numbers) > 5
    for key in numbers:
        try:
            found = family.read_hf({**written, key: 2 * written[key]})
        except ModelFileError:
            continue
        assert found != ours, f"{key} is silently ignored"
