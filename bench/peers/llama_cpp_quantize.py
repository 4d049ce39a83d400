"""`python llama_cpp_quantize.py SRC.gguf DST.gguf Q4_0|Q8_0`: llama.cpp's recipe, applied to quantized weights."""

import os
import sys

import llama_cpp

FORMATS = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def main(source: str, target: str, name: str) -> int:
    """Write `target`, which appears when it is complete. Returns the exit code."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[name]
    params.allow_requantize = True
    partial = f"{target}.partial"
    status = llama_cpp.llama_model_quantize(source.encode(), partial.encode(), params)
    if status == 0:
        os.replace(partial, target)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
