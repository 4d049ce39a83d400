"""What may happen while a tape is recorded: views, constants, operations of the vocabulary, and nothing else."""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.kernels.native.library import Library, Value


class Recorder(Protocol):
    """What an operation of the vocabulary does with the tape that it goes onto (`Tape`)."""

    library: Library

    def holds(self, x: Tensor) -> bool: ...
    def like(self, x: Tensor, *shape: int) -> Tensor: ...
    def rows(self, x: Tensor) -> Any: ...
    def emit(self, name: str, **fields: Value) -> None: ...


class NotRecordable(UserError):
    """A part of a model does something that has no native kernel; Python computes it in every step."""

    def __init__(self, what: str) -> None:
        super().__init__("this cannot be recorded", why=f"it {what}, which no native kernel does")


HEADS_APART = "reads rows whose heads do not lie side by side"


def require(holds: bool, what: str) -> None:
    """Refuse to record an operation whose arguments native kernels were not written for."""
    if not holds:
        raise NotRecordable(what)


class StepSeqs(Seqs):
    """The rows of a step that is not known yet: a tape is recorded with them, once for all steps."""

    def slice(self, first: int, last: int) -> "StepSeqs":
        return self

    def select(self, rows: Sequence[int]) -> "StepSeqs":
        return self

    def tag(self, name: str) -> int | Tensor | None:
        value = self.tags.get(name)
        require(isinstance(value, int), f"reads the {name} of rows")
        return value  # type: ignore[return-value]

    def tagged(self, name: str, value: int) -> "StepSeqs":
        return replace(self, tags={**self.tags, name: value}, _memo={})

    @property
    def positions(self) -> Tensor:
        raise NotRecordable("reads the positions of rows")

    def memo(self, key: Hashable, make: Callable[[], Any]) -> Any:
        raise NotRecordable("reads which rows are whose")

    def _tensor(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        raise NotRecordable("reads which rows are whose")


_HARMLESS = (torch.ops.aten.promote_types.default, torch.ops.aten.detach_.default)


class Guard(TorchDispatchMode):
    """Lets views and constants pass, records what native kernels do, and refuses every other torch operation.

    is_buffer: whether a tensor is one of the tape; record(function, args, kwargs): see `vocabulary`; live: starts of
    memory that other things change.
    """

    def __init__(
        self, is_buffer: Callable[[Tensor], bool], record: Callable[[Any, Any, Any], Tensor], live: Collection[int]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allows_all = False
        self._is_buffer, self._record, self._live = is_buffer, record, live
        self._made: dict[int, Tensor] = {}  # constants by their memory: they may be written while they are made

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """A tape is never recorded inside torch.compile, and asking torch to see to that imports its compiler: a second
        of every start."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.allows_all or func in _HARMLESS:
            return func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.is_view:
            result = func(*args, **(kwargs or {}))
            seen = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            if not any(map(self._is_buffer, tensors)) or all(map(self._is_buffer, seen)):
                return result
            return self._record(func, args, kwargs or {})  # some views are copies, where they have to be
        read = [_memory(x) for x in tensors]
        if any(x in self._live for x in read):
            raise NotRecordable(f"computes {func.__name__} with what is cached")
        if any(map(self._is_buffer, tensors)):
            return self._record(func, args, kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotRecordable(f"draws numbers by {func.__name__}")
        if func._schema.is_mutable and not (read and read[0] in self._made):
            raise NotRecordable(f"writes by {func.__name__}")
        result = func(*args, **(kwargs or {}))
        self._made |= {_memory(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage().data_ptr())
