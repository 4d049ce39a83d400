#!/usr/bin/env bash
# A long-context entry added to config.json silently changes the rotary base.
#
# Expected: the config.json that transformers 5 writes holds rope_parameters with rope_theta 1,000,000. Adding the
# rope_scaling entry that model cards give for YaRN changes the scaling and leaves the base alone, as it does in the
# layout of transformers 4 (rope_theta at the top level).
# Happens: rope_scaling replaces rope_parameters as a whole, and the missing rope_theta becomes the default 10,000.
# Seen with: transformers 5.24.0.
# Why it matters: the model loads, without a warning about the base, and every position is rotated by wrong angles.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq transformers==5.24.0 tokenizers==0.23.3
cd "$tmp"
HF_HOME="$tmp" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$tmp/venv/bin/python" - <<'EOF'
import json
from pathlib import Path

import transformers
from transformers import AutoConfig, Qwen3Config

print("transformers", transformers.__version__)
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
Qwen3Config(max_position_embeddings=131072, rope_parameters=rope).save_pretrained("model")
path = Path("model/config.json")
saved = json.loads(path.read_text())


def theta(config):
    path.write_text(json.dumps(config))
    return AutoConfig.from_pretrained("model").rope_parameters["rope_theta"]


plain = theta(saved)
with_yarn = theta({**saved, "rope_scaling": yarn})
old = {key: value for key, value in saved.items() if key != "rope_parameters"}
old_with_yarn = theta({**old, "rope_theta": 1_000_000.0, "rope_scaling": yarn})
print("rope_theta as saved                        ", plain)
print("rope_theta with rope_scaling beside it     ", with_yarn)
print("rope_theta in the old layout, same scaling ", old_with_yarn)
assert saved["rope_parameters"]["rope_theta"] == plain == old_with_yarn == 1_000_000.0
assert with_yarn == 10_000.0, "changed: the base is kept"
EOF
