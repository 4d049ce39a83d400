"""Who is chosen: `auto` never takes the reference, and says why nobody can."""

import pytest
import torch

from stretto.core.errors import UserError
from stretto.kernels.fftconv import torch_
from stretto.kernels.pick import pick


def test_auto_never_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_, "why_not", lambda *args: "it is Monday")
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="it is Monday"):
        pick("fftconv", ("torch", "reference"), "auto", x, x)
    assert pick("fftconv", ("torch", "reference"), "reference", x, x).__module__.endswith("reference")
