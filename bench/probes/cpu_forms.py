"""The forms of arithmetic that cpu_arithmetic.py compares, as lists of operations: shipped ones and its own."""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stretto.core.env import read_env
from stretto.kernels.native.buffers import ALL_ROWS, aligned
from stretto.kernels.native.build import (
    DEFINES,
    FLAGS,
    GCC_FLAGS,
    LEVELS,
    build,
    cpu_features,
    find_compiler,
    include_flags,
)
from stretto.kernels.native.library import Op, Team, Value, load

SOURCE = Path(__file__).with_name("cpu_arithmetic.cpp")
D_IN, D_OUT, TILE, GROUP = 576, 1536, 32, 32  # a matrix of SmolLM2; rows of a tile, inputs of a group


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form of arithmetic. error: what rounding explains, relative to the result.

    dots: how many times `instruction` is executed for 16 rows of weights, 32 inputs and one row of activations.
    """

    name: str
    dots: int
    instruction: str
    error: float


FIXED = Form(name="fixed point", dots=16, instruction="dot", error=8e-5)
INT8 = Form(name="int8", dots=8, instruction="dot", error=1e-2)
SHIPPED = (FIXED, INT8)
FORMS = (
    *SHIPPED,
    Form(name="bf16", dots=16, instruction="bf16_dot", error=3e-3),
    Form(name="fp32", dots=32, instruction="fma", error=2e-6),
)
INSTRUCTIONS = {
    "dot": "vpdpbusd",
    "dot_memory": "vpdpbusd, one operand broadcast from memory",
    "fma": "vfmadd231ps",
    "bf16_dot": "vdpbf16ps",
    "load": "loads",
}
"""512-bit instructions by the names of their loops in cpu_arithmetic.cpp."""
SPINS = 16  # executed by one turn of a loop


class _FormArgs(ctypes.Structure):
    """`FormArgs` of cpu_arithmetic.cpp."""

    _fields_ = [
        ("rows", c_int32),
        ("d_in", c_int32),
        ("d_out", c_int32),
        ("unused", c_int32),
        ("x", c_void_p),
        ("values", c_void_p),
        ("factors", c_void_p),
        ("tiles", c_void_p),
        ("y", c_void_p),
    ]


class Kernels:
    """The shipped library of one level and the probe's own, with activations x [rows, D_IN] and room for results."""

    def __init__(self, level: str, x: Tensor, note: Callable[[str], None]) -> None:
        self.shipped, self.own = load(build(level, read_env().cache_dir, note=note)), compiled(level)
        # for the widest forms: four bytes a value, and two numbers for each group
        self.x, self.values = x, aligned((4 * x.numel(),), torch.uint8)
        self.factors = aligned((2 * x.numel() // GROUP,), torch.float32)
        self.y = aligned((len(x), D_OUT), torch.float32)
        self._kept: list[ctypes.Structure] = []  # operations hold addresses of their arguments
        self._rows = self.shipped.struct("Rows")(self.shipped.code("RowKind", ALL_ROWS))
        self._start = c_int32(0)

    def has(self, form: Form) -> bool:
        return form in SHIPPED or hasattr(self.own, f"multiply_{form.name}_run")

    def team(self, num_threads: int) -> Team:
        return Team(self.shipped, num_threads)

    def step(self, rows: int) -> ctypes.Structure:
        """What a list for so many rows runs with: they are a prompt, so that the coarse form applies."""
        return self.shipped.struct("Step")(num_rows=rows, num_seqs=1, starts=ctypes.addressof(self._start))

    def products(self, form: Form, matrices: Sequence[int], rows: int) -> ctypes.Array[Op]:
        """A list that multiplies the first rows with the matrices at these addresses, one after the other."""
        ops: list[Op] = []
        for tiles in matrices:
            ops += [self._prepare(form, rows), self._multiply(form, tiles, rows, D_OUT)]
        return (Op * len(ops))(*ops)

    def preparations(self, form: Form, rows: int, times: int) -> ctypes.Array[Op]:
        """A list that does nothing but bring rows into the form."""
        return (Op * times)(*(self._prepare(form, rows) for _ in range(times)))

    def tile_products(self, tile: int, rows: int, times: int) -> ctypes.Array[Op]:
        """A list of shipped products with a single tile, for rows that are in the form already."""
        return (Op * times)(*(self._multiply(FIXED, tile, rows, TILE) for _ in range(times)))

    def result(self, form: Form, tiles: Tensor, rows: int) -> Tensor:
        """[rows, D_OUT]: the product with one matrix, from a buffer that held NaN."""
        self.y.fill_(torch.nan)
        self.team(1).run(self.products(form, [tiles.data_ptr()], rows), self.step(rows))
        return self.y[:rows].clone()

    def _prepare(self, form: Form, rows: int) -> Op:
        if form not in SHIPPED:
            return self._own_op(f"prepare_{form.name}", rows, 0, 0)
        shape = {"rows": self._rows, "d_in": D_IN, "coarse_prompts": form is INT8}
        return self._shipped_op("quantize", {**shape, "x": self.x, "x_stride": D_IN, "out": self.values})

    def _multiply(self, form: Form, tiles: int, rows: int, d_out: int) -> Op:
        if form not in SHIPPED:
            return self._own_op(f"multiply_{form.name}", rows, d_out, tiles)
        sizes = {"rows": self._rows, "d_in": D_IN, "d_out": d_out, "coarse_prompts": form is INT8}
        fields = {**sizes, "format": self.shipped.code("Format", "q4_1"), "fixed": self.values, "y": self.y}
        return self._shipped_op("matmul", fields, tiles)

    def _shipped_op(self, name: str, fields: dict[str, Value], tiles: int = 0) -> Op:
        args, _ = self.shipped.args(name, fields)
        if tiles:
            args.tiles = tiles
        self._kept.append(args)
        return self.shipped.op(name, args)

    def _own_op(self, name: str, rows: int, d_out: int, tiles: int) -> Op:
        buffers = (self.x, self.values, self.factors)
        args = _FormArgs(rows, D_IN, d_out, 0, *(b.data_ptr() for b in buffers), tiles, self.y.data_ptr())
        describe = getattr(self.own, f"{name}_fields")
        describe.restype = ctypes.c_char_p
        names = [field.split(":")[0] for field in describe().decode().split()]
        assert names == [field for field, _ in args._fields_], "FormArgs differs from the C++ side"
        self._kept.append(args)
        chunks, run = (ctypes.cast(getattr(self.own, f"{name}_{part}"), c_void_p) for part in ("chunks", "run"))
        return Op(chunks, run, ctypes.addressof(args))


def compiled(level: str) -> ctypes.CDLL:
    """cpu_arithmetic.cpp, compiled as the shipped kernels of this level are, with bf16 dot products where there are."""
    program = find_compiler(read_env().cxx)
    assert program is not None, "the shipped kernels have just been built"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    flags = [*FLAGS, *(GCC_FLAGS if "Free Software" in version else ()), *DEFINES, *LEVELS[level], *include_flags()]
    if level == "avx512" and "avx512_bf16" in cpu_features():
        flags.append("-mavx512bf16")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libprobe.so"
        subprocess.run([program, *flags, "-shared", str(SOURCE), "-o", str(library)], check=True)
        probe = ctypes.CDLL(str(library))
    if level == "avx512":
        probe.time_stamp.restype = ctypes.c_uint64
    return probe


def spin(probe: ctypes.CDLL, name: str, turns: int) -> Callable[[], None] | None:
    """A call that executes an instruction `SPINS * turns` times; None where this CPU has none of that name."""
    loop = getattr(probe, f"spin_{name}", None)
    return None if loop is None else lambda: loop(c_int64(turns))
