"""Native CPU kernels: C++ sources, the builder that compiles them once per instruction-set level, and the tape.

    include/    16-lane vectors (vec.h), what an operation looks like (op.h), how Python knows its struct (fields.h)
    team.cpp    the threads that run lists of operations
    build       sources -> a shared library in a private cache
    library     the library through ctypes, and teams of threads
    buffers     memory for the rows of a step
    operations  a list of operations, and how it runs
    tape        a forward pass recorded as such a list

The C++ source of an operation lies beside its `reference.py`; `native.py` there records it on the tape.
"""
