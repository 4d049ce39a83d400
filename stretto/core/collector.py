"""Python's garbage collector, kept out of what makes many objects that stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(*, for_good: bool = False) -> Iterator[None]:
    """No collection inside: looking through all of torch finds nothing, and takes a tenth of a second each time.

    Afterwards the collector runs if it did before. What another thread does inside is collected later. for_good: what
    there is at the end stays until the process ends, so that no collection looks at it: for programs, not libraries.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if ran:
            gc.enable()
