#!/usr/bin/env bash
# A dispatch mode sees other operations under inference_mode than under no_grad.
#
# Expected: both contexts only turn gradients off, so a TorchDispatchMode that records, counts or rewrites operations is
# given the same list in both: `linear` as `t` and `mm`, `square` as `pow`, `reshape` as a view or a copy.
# Happens: under inference_mode composite operations arrive whole (`aten.linear`, `aten.matmul`, `aten.square`,
# `aten.reshape`, `aten.to`, ...), and none of their parts. A table that was written under no_grad matches none of them,
# and an operation named like a view (`aten.reshape`) may be the copy.
# Seen with: torch 2.13.0.
# Why it matters: tracers, counters and quantizers that were tested under no_grad skip layers under inference_mode.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq torch==2.13.0 numpy
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

print("torch", torch.__version__)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function).removeprefix("aten."))
        return function(*args, **(kwargs or {}))


CALLS = {
    "linear": lambda x: F.linear(x, x),
    "matmul": lambda x: x @ x,
    "square": lambda x: x.square(),
    "reshape": lambda x: x.t().reshape(16),  # rows of a transposed matrix do not lie one after the other: a copy
    "to": lambda x: x.to(torch.float64),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
}
seen = {}
for context in (torch.no_grad, torch.inference_mode):
    for name, call in CALLS.items():
        with context():
            x = torch.arange(16.0).view(4, 4)
            with Recorder() as recorder:
                call(x)
        seen[name, context] = recorder.names
for name in CALLS:
    parts, whole = seen[name, torch.no_grad], seen[name, torch.inference_mode]
    print(f"{name:<10}  no_grad: {', '.join(parts):<42}  inference_mode: {', '.join(whole)}")
    assert any(one.startswith(name + ".") for one in whole), "changed: inference_mode shows the parts"
    assert not any(one.startswith(name + ".") for one in parts), "changed: no_grad shows it whole"
EOF
