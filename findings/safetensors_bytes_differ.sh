#!/usr/bin/env bash
# The same tensors and metadata do not give the same safetensors file twice.
#
# Expected: a file holds a JSON header and the values, nothing else, so equal input gives equal bytes.
# Happens: tensors are in a fixed order, entries of the metadata are not. With two or more entries the header changes
# from call to call, in one process as well. With one entry, as transformers writes for plain weights, it never does.
# Seen with: safetensors 0.8.0, numpy 2.4.6.
# Why it matters: a hash of the file is no key for its content. Caches, uploads that skip known files and reproducible
# builds work in a test with one entry, and fail now and then once a second entry is added.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq safetensors==0.8.0 numpy==2.4.6
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import hashlib
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("safetensors", version("safetensors"))
tensors = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}
one = {"format": "pt"}
three = {"format": "pt", "base": "model", "step": "10"}


def files(metadata):
    return {hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(64)}


counts = {"no metadata": len(files(None)), "one entry": len(files(one)), "three entries": len(files(three))}
print("different files out of 64:", counts)
content = load(save(tensors, metadata=three))
assert all(np.array_equal(content[name], tensors[name]) for name in tensors)
assert counts["no metadata"] == counts["one entry"] == 1
assert counts["three entries"] > 1, "changed: equal input gives equal bytes"
EOF
