"""Kinds of CPU, by the instructions that decide how fast integers are multiplied, and how others are held to fewer.

A record belongs to the best kind that a CPU is, from the flags that Linux shows:

    amx           amx_tile and amx_int8                tiles of bytes
    avx512_vnni   avx512f and avx512_vnni              512-bit dot products of bytes
    avx512        avx512f
    avx_vnni      avx_vnni                             256-bit dot products of bytes
    avx2          avx2
    generic       none of these
"""

from collections.abc import Collection, Mapping

_KINDS: Mapping[str, frozenset[str]] = {
    "amx": frozenset({"amx_tile", "amx_int8"}),
    "avx512_vnni": frozenset({"avx512f", "avx512_vnni"}),
    "avx512": frozenset({"avx512f"}),
    "avx_vnni": frozenset({"avx_vnni"}),
    "avx2": frozenset({"avx2"}),
    "generic": frozenset(),
}
KINDS = tuple(_KINDS)

_NO_AVX512 = ("AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL", "AVX512_VNNI", "AVX512_BF16")

# Variables under which a system that asks for them stays within AVX2. Which ones do is found out (`Worker.avx512_age`).
AVX2_ONLY: Mapping[str, str] = {
    "STRETTO_LEVEL": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "MISTRALRS_FORCE_AVX2": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    # The C library copies memory with AVX-512 registers, which would be taken for the system's own.
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{name}" for name in _NO_AVX512),
}


def kind_of(features: Collection[str]) -> str:
    """The kind of a CPU with these flags."""
    return next(kind for kind, needed in _KINDS.items() if needed <= set(features))
