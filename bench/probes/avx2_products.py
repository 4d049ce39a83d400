"""Forms of integer products on AVX2, which has no instruction that sums products of bytes in 32 bits.

    python bench/probes/avx2_products.py [--rounds 15] [--json FILE]

A loop over one half of a tile of Q4 weights in the nearest cache, four rows of activations, one thread, scales as the
shipped product applies them (kernels/linear/products.h). Every form is compared with integer sums of numpy before it is
timed. Times are those of the thread, not of the wall; rounds take turns. A rate counts multiplications of a weight and
an activation, whatever instructions they take.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from stretto.kernels.native.build import FLAGS, GCC_FLAGS, LEVELS, find_compiler, supported_levels
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

SOURCE = Path(__file__).with_suffix(".cpp")
ROWS, OUTPUTS, GROUP, GROUPS = 4, 16, 32, 8  # a part of a tile as the shipped product takes it
REPEAT = 20_000
FORMS = {
    "emulated": ("high and low bytes, each multiplied as 16-bit halves", "bytes"),
    "pairs": ("16-bit integers in pairs (vpmaddwd), intrinsics", "pairs"),
    "pairs_assembly": ("16-bit integers in pairs (vpmaddwd), assembly", "pairs"),
    "planes": ("high bytes, then low ones (vpmaddubsw), intrinsics", "bytes"),
    "planes_assembly": ("high bytes, then low ones (vpmaddubsw), assembly", "bytes"),
    "coarse": ("8-bit integers (vpmaddubsw), intrinsics", "coarse"),
    "coarse_assembly": ("8-bit integers (vpmaddubsw), assembly", "coarse"),
}
"""Functions of the source: what they are, and how the integers of a row lie."""


def main() -> None:
    """Check, measure, print, and write the record if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write a record")
    args = parser.parse_args()
    if not {"avx2", "avx512"} & set(supported_levels()):
        raise SystemExit("this probe needs a CPU with AVX2")
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (GROUPS, OUTPUTS, GROUP))
    scales = random.normal(size=(GROUPS, OUTPUTS)).astype(np.float32)
    steps = np.exp2(random.integers(-3, 3, (GROUPS, ROWS))).astype(np.float32)
    wide = random.integers(-32639, 32640, (GROUPS, ROWS, GROUP))
    narrow = random.integers(-127, 128, (GROUPS, ROWS, GROUP))
    rows = {"bytes": as_bytes(wide), "pairs": as_pairs(wide), "coarse": as_coarse(narrow)}
    weights, library, out = as_tile(codes), compiled(), np.zeros((ROWS, OUTPUTS), np.float32)

    def call(name: str, repeat: int) -> None:
        given = (weights, scales, rows[FORMS[name][1]], steps)
        getattr(library, name)(*(a.ctypes.data_as(ctypes.c_void_p) for a in given), GROUPS, at(out), repeat)

    for name, (_, lies) in FORMS.items():
        call(name, 1)
        integers = narrow if lies == "coarse" else wide
        want = np.einsum("goi,gri,go,gr->ro", *map(np.float64, (codes, integers, scales, steps)))
        assert np.allclose(out, want, rtol=1e-5, atol=1e-5 * np.abs(want).max()), f"{name} is wrong"
    products = ROWS * OUTPUTS * GROUP * GROUPS * REPEAT
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for name in FORMS:
            started = time.thread_time()
            call(name, REPEAT)
            rates[name].append(products / (time.thread_time() - started) / 1e9)
    for name, (words, _) in FORMS.items():
        print(f"{words:60s} {median(rates[name]):6.1f} G/s  ({min(rates[name]):.1f} to {max(rates[name]):.1f})")
    if args.json:
        results = [result(words, "1e9 products/s", rates[name]) for name, (words, _) in FORMS.items()]
        command = f"python bench/probes/avx2_products.py --rounds {args.rounds}"
        record = as_record("avx2_products", command, describe_machine(), results, rates)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def at(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def compiled() -> ctypes.CDLL:
    """The forms as a library, with the flags of the level."""
    compiler = find_compiler()
    assert compiler is not None, "this probe needs a C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forms.so"
        flags = [*FLAGS, *GCC_FLAGS, *LEVELS["avx2"], "-shared"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path)], check=True)
        return ctypes.CDLL(str(path))


# -- how weights and integers lie in memory ---------------------------------------------------------------------------


def as_tile(codes: np.ndarray) -> np.ndarray:
    """[G, 4 words, 16 lanes, 4 bytes] uint8: codes 8 w + b in the low nibbles of word w, 8 w + 4 + b in the others."""
    parts = codes.reshape(GROUPS, OUTPUTS, 4, 2, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(parts[:, :, 0] | parts[:, :, 1] << 4, np.uint8)


def as_bytes(integers: np.ndarray) -> np.ndarray:
    """[G, R, 64] int8: high bytes, then low bytes, n = 256 high + low."""
    high = (integers + 128) >> 8
    return np.concatenate([high, integers - 256 * high], -1).astype(np.int8)


def as_pairs(integers: np.ndarray) -> np.ndarray:
    """[G, R, 32] int16: of every four, 0, 2, 1, 3, as the bytes of a code vector part into even and odd ones."""
    return np.ascontiguousarray(integers.reshape(GROUPS, ROWS, 8, 4)[..., [0, 2, 1, 3]], np.int16)


def as_coarse(integers: np.ndarray) -> np.ndarray:
    """[G, R, 64] int8: 32 integers, and nothing behind them."""
    return np.concatenate([integers, np.zeros_like(integers)], -1).astype(np.int8)


if __name__ == "__main__":
    main()
