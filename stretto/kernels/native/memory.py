"""Bytes by address: of this process alone (`Memory`), and of a file (`MappedFile`)."""

import ctypes
import mmap


class Memory:
    """Bytes that start at a page, are taken when they are first touched, and begin as zeros.

    nbytes: how many. They live as long as this object.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._map = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._start)

    def write(self, data: "bytes | memoryview", start: int = 0) -> None:
        """Fill the bytes from `start` on."""
        self._map[start : start + len(data)] = data

    def read(self, start: int, nbytes: int) -> bytes:
        """A copy of some bytes."""
        return self._map[start : start + nbytes]


class _Buffer(ctypes.Structure):
    """`Py_buffer` of Python's C interface: the only way from a read-only map to its address."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]  # fmt: skip


class MappedFile:
    """A file, to be read. Pages that were read count as memory of this process until they are forgotten."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.nbytes, view = len(self._map), _Buffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(self._map), ctypes.byref(view), 0)
        self.address = view.buf or 0
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))  # the map is never closed before this object is gone

    def forget(self) -> None:
        """Its pages leave this process, and stay in the cache of the system."""
        self._map.madvise(mmap.MADV_DONTNEED)
