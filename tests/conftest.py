"""Shared by all tests: one torch thread (the suite runs beside other work), fixed seeds, no settings from outside."""

import os
import signal
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
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what it puts in the background like this, and children would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["STRETTO_NO_PROGRAMS"] = "1"  # nothing of the many small models is kept; tests of that say so


# Files whose tests take longest together, in that order. A process takes a whole file at a time, so one of
# these left for last would run alone for minutes while the other processes have nothing to do.
LONG_FILES = (
    "test_native_sanitized.py",
    "test_native.py",
    "test_native_foreign.py",
    "test_one_file.py",
    "test_smollm2.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files start first; the order of the others, and of the tests in a file, stays."""
    items.sort(key=lambda one: LONG_FILES.index(one.path.name) if one.path.name in LONG_FILES else len(LONG_FILES))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's GGUF file, fetched into the cache once."""
    return models.resolve("smollm2", env=read_env(), progress=False)
