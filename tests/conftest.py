"""Shared by all tests: one torch thread (the suite runs beside other work), fixed seeds, no settings from outside."""

import os
from pathlib import Path

import pytest
import torch

from stretto.core.env import read_env
from stretto.core.option import options_of
from stretto.core.settings import Settings
from stretto.hub import models

torch.set_num_threads(1)
for _one in options_of(Settings):
    os.environ.pop(_one.variable, None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's GGUF file, fetched into the cache once."""
    return models.resolve("smollm2", env=read_env(), progress=False)
