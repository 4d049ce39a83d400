"""What files of Nemotron-H spell in ways of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoints, close, tiny, whole

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError

NEMOTRON = tiny("nemotron_h")
FAMILY = next(f for f in families() if f.name == "nemotron_h")
SPECS: dict[str, dict[str, Any]] = {
    "biases": NEMOTRON | {"mlp_bias": True, "use_bias": True, "use_conv_bias": False},
    "no attention": NEMOTRON | {"layers_block_type": ["linear_attention", "mlp"], "num_hidden_layers": 2},
    "attention first": NEMOTRON | {"layers_block_type": ["full_attention", "mlp"], "num_hidden_layers": 2},
}


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    path, want = Checkpoints(tmp_path)(name, SPECS[name])
    close(whole(load_model(open_model(path))), want)
    convert(path, tmp_path / "m.gguf", "gguf")
    close(whole(load_model(open_model(tmp_path / "m.gguf"))), want)


def test_old_files_say_kinds_by_letters_and_models_of_experts_are_refused(tmp_path: Path) -> None:
    config = json.loads((Checkpoints(tmp_path)("nemotron_h", NEMOTRON)[0] / "config.json").read_text())
    ours = FAMILY.read_hf(config)
    config.pop("layers_block_type")
    config = {**config, "num_hidden_layers": 5}
    assert FAMILY.read_hf(config | {"hybrid_override_pattern": "M-*-M"}) == ours
    for pattern in ("ME*-M", "", "M-*-MM", None):
        with pytest.raises(ModelFileError, match=r"hybrid_override_pattern|num_hidden_layers"):
            FAMILY.read_hf(config | {"hybrid_override_pattern": pattern})


def test_limits_of_time_steps_are_those_of_the_file(tmp_path: Path) -> None:
    """Not `time_step_min`, which is for the start of training; a limit cannot be written to GGUF."""
    config = json.loads((Checkpoints(tmp_path)("nemotron_h", NEMOTRON)[0] / "config.json").read_text())
    ours = FAMILY.read_hf(config | {"time_step_min": 0.001})
    assert ours == FAMILY.read_hf(config)
    limited = FAMILY.read_hf(config | {"time_step_limit": [0.001, 10.0]})
    assert limited.layers[0].mixer.time_step_limit == (0.001, 10.0)  # type: ignore[union-attr]
    with pytest.raises(ModelFileError, match="time_step_limit"):
        FAMILY.to_gguf(limited)
