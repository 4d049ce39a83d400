"""A mixer beside the block of transformers that computes the same."""

from collections.abc import Mapping

import torch
from torch import nn

from stretto.core.mixer import Mixer
from stretto.core.seqs import Seqs
from stretto.core.state import TensorCache


def check(ours: Mixer, theirs: nn.Module, width: int, renamed: Mapping[str, str]) -> None:
    """Give both the same random weights and compare them in fp32, packed and token by token.

    renamed: what their parameters are called here.
    """
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        state = {renamed.get(name, name): p for name, p in theirs.named_parameters()}
        state["conv_weight"] = state["conv_weight"][:, 0]
        ours.load_state_dict(state)
        agree(ours, theirs, width)


def agree(ours: Mixer, theirs: nn.Module, width: int) -> None:
    """Two sequences of 21 rows: whole, then token by token."""
    x = torch.randn(2, 21, width)
    wanted = theirs(x)
    found = ours(x.flatten(0, 1), Seqs.of([21, 21]))
    torch.testing.assert_close(found, wanted.flatten(0, 1), rtol=0, atol=1e-5)
    cache = TensorCache(ours.state_specs, 2, torch.float32)
    for t in range(21):
        y = ours(x[:, t], Seqs.of([1, 1], [t, t], num_step=2), cache)
        torch.testing.assert_close(y, wanted[:, t], rtol=0, atol=1e-5)
