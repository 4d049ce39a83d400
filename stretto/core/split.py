"""The `Split` socket: how work is divided over devices. Plans only; transport is torch.distributed's."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one parameter lives. dim: the dimension that is divided over `axis`; None = replicated."""

    axis: str
    dim: int | None


class Split(ABC):
    """Turns a module into placements for DTensor, FSDP2, pipelining or context parallelism.

    Law (tests with gloo): n processes = one process, outputs and gradients.
    """

    @abstractmethod
    def plan(self, module: nn.Module) -> Mapping[str, Placement]:
        """Parameter name -> placement, for every parameter of `module`."""
