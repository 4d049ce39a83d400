"""Native CPU kernels: C++ sources, the builder that compiles them once per instruction-set level, and the tape.

    src/      kernels over 16-lane vectors (vec.h), one argument struct each (op.h), and the pool that runs them
    build     sources -> a shared library in a private cache
    library   the library through ctypes, and pools of threads
    tape      a forward pass recorded as a list of operations

A backend named `native.py` beside an operation's reference turns its arguments into one struct on the tape.
"""
