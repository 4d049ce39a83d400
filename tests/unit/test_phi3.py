"""What files of Phi-3 spell in ways of their own, against transformers on random models."""

import json
from pathlib import Path

import pytest
from checkpoints import Checkpoints, close, tiny, whole

from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.core.errors import ModelFileError

PHI3 = tiny("phi3")


def test_without_a_window(tmp_path: Path) -> None:
    path, want = Checkpoints(tmp_path)("plain", PHI3 | {"sliding_window": None})
    close(whole(load_model(open_model(path))), want)


@pytest.mark.parametrize("spelled", ["longrope", "su", "yarn"])
def test_positions_stretched_by_lists_are_refused(spelled: str, tmp_path: Path) -> None:
    """`yarn` means longrope there."""
    family = next(f for f in families() if f.name == "phi3")
    config = json.loads((Checkpoints(tmp_path)("phi3", PHI3)[0] / "config.json").read_text())
    config.pop("rope_parameters")
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for key in ("type", "rope_type"):
        with pytest.raises(ModelFileError, match="lists of factors"):
            family.read_hf(config | {"rope_scaling": {key: spelled, **factors}})
