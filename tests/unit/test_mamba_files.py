"""What files of Mamba and Falcon Mamba spell in ways of their own, against transformers on random models."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoints, close, tiny, whole

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import open_model
from stretto.core.errors import ModelFileError

MAMBA = tiny("mamba")
FALCON = MAMBA | {"model_type": "falcon_mamba", "mixer_rms_eps": 1e-5}
SPECS: dict[str, dict[str, Any]] = {
    "biases": MAMBA | {"use_bias": True, "use_conv_bias": False, "time_step_rank": "auto"},
    "tied": MAMBA | {"tie_word_embeddings": True, "expand": 3, "intermediate_size": 96},
    "falcon": FALCON,
}


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    path, want = Checkpoints(tmp_path)(name, SPECS[name])
    model = open_model(path)
    close(whole(load_model(model)), want)
    convert(path, tmp_path / "m.gguf", "gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf")
    for other in (tmp_path / "m.gguf", tmp_path / "back"):
        assert open_model(other).config == model.config
        close(whole(load_model(open_model(other))), want)


def test_two_epsilons_have_no_key_in_gguf(tmp_path: Path) -> None:
    path, want = Checkpoints(tmp_path)("falcon", FALCON | {"mixer_rms_eps": 0.1})
    close(whole(load_model(open_model(path))), want)
    with pytest.raises(ModelFileError, match="mixer_rms_eps"):
        convert(path, tmp_path / "m.gguf", "gguf")
