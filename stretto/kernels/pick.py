"""Choosing an implementation: `impl="auto"` takes the first backend that can, an explicit one must be able to.

`auto` never takes the reference: it is a loop in wide numbers, and would be a hundred times slower without a word.

A backend is a module with `why_not(...) -> str | None` (None: it can run these arguments here) and a function of the
operation's name with the public signature. Backends are imported when they are first considered, so a machine without
triton or without a compiler never imports what it cannot use.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Literal

from stretto.core.errors import UserError

Impl = Literal["auto", "reference", "torch", "onednn", "native", "triton"]
_MODULES = {"reference": "reference", "torch": "torch_", "onednn": "onednn", "native": "native", "triton": "triton_"}
BACKENDS: tuple[Impl, ...] = ("triton", "native", "onednn", "torch", "reference")  # the preference of every operation
_log = logging.getLogger(__name__)


def pick(op: str, order: Sequence[Impl], impl: Impl, *args: Any) -> Callable[..., Any]:
    """The function `op` of the chosen backend; `args` go to each backend's `why_not`. Raises UserError.

    op: a package of kernels/, whose backends have a function of that name, or `package.function`.
    """
    package, _, function_name = op.partition(".")
    reasons: list[str] = []
    for name in [name for name in order if name != "reference"] if impl == "auto" else (impl,):
        reason = f"{op} has no {name} backend" if name not in order else None
        if reason is None:
            backend = _backend(package, name)
            reason = backend.why_not(*args)
            if reason is None:
                _log_choice(op, name, tuple(reasons))
                function: Callable[..., Any] = getattr(backend, function_name or package)
                return function
        reasons.append(f"{name}: {reason}")
    raise UserError(
        f"no implementation of {op} can run this",
        why="; ".join(reasons),
        try_="impl='reference' to compare with" if impl == "auto" else "impl='auto'",
    )


def explain(op: str, order: Sequence[Impl], *args: Any) -> list[tuple[Impl, str | None]]:
    """For every backend of `order`: why it cannot run `args` here, None if it can. The first None is what `pick` takes.

    A backend that the operation does not have (yet) is named as such, so the doctor asks for all of `BACKENDS`.
    """
    found: list[tuple[Impl, str | None]] = []
    for name in order:
        if importlib.util.find_spec(f"stretto.kernels.{op}.{_MODULES[name]}") is None:
            found.append((name, "no such backend"))
        else:
            found.append((name, _backend(op, name).why_not(*args)))
    return found


@cache
def _backend(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"stretto.kernels.{op}.{_MODULES[name]}")


@cache
def _log_choice(op: str, name: str, reasons: tuple[str, ...]) -> None:
    _log.info("%s runs on %s%s", op, name, f" ({'; '.join(reasons)})" if reasons else "")
