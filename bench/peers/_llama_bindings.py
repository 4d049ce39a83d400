"""The three ways in which Python packages bind the C functions of llama.cpp and of its fork, under one set of names.

Structures are filled and functions called alike in all of them; here stands what differs. Standard library only.
"""

import ctypes
from typing import Any


class LlamaCppPython:
    """llama-cpp-python: ctypes."""

    def __init__(self) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        self.version = f"llama-cpp-python {llama_cpp.__version__}"

    def system(self) -> str:
        """The instructions that it was built for."""
        return str(self.lib.llama_print_system_info().decode())

    def clear(self, context: Any) -> None:
        """Forget all tokens of a context."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(context), False)

    def forget(self, context: Any, start: int) -> None:
        """Forget the tokens of stream 0 from position `start` on."""
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(context), 0, start, -1)

    def floats(self, pointer: Any, count: int) -> Any:
        """A buffer over `count` floats."""
        return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * count)).contents


class IkLlamaCppPython(LlamaCppPython):
    """ik-llama-cpp-python: ctypes, an older form of the functions for the cache; some are in the library alone."""

    def __init__(self) -> None:
        import importlib.metadata

        import ik_llama_cpp._ctypes_api as lib

        self.lib = lib
        self.version = f"ik-llama-cpp-python {importlib.metadata.version('ik-llama-cpp-python')}"
        lib._lib.llama_print_system_info.restype = ctypes.c_char_p
        lib._lib.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3]
        lib._lib.llama_kv_cache_seq_rm.restype = ctypes.c_bool

    def system(self) -> str:
        return str(self.lib._lib.llama_print_system_info().decode())

    def clear(self, context: Any) -> None:
        self.lib.llama_kv_cache_clear(context)

    def forget(self, context: Any, start: int) -> None:
        self.lib._lib.llama_kv_cache_seq_rm(context, 0, start, -1)


class LlamaCppPySync(LlamaCppPython):
    """llama-cpp-py-sync: cffi."""

    def __init__(self) -> None:
        import llama_cpp_py_sync
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        self.lib, self.ffi = get_lib(), get_ffi()
        self.version = f"llama-cpp-py-sync {llama_cpp_py_sync.__version__}"

    def system(self) -> str:
        return str(self.ffi.string(self.lib.llama_print_system_info()).decode())

    def floats(self, pointer: Any, count: int) -> Any:
        return self.ffi.buffer(pointer, 4 * count)


BINDINGS = {
    "llama-cpp-python": LlamaCppPython,
    "ik-llama-cpp-python": IkLlamaCppPython,
    "llama-cpp-py-sync": LlamaCppPySync,
}
