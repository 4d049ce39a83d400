#!/usr/bin/env bash
# A number of config.json becomes an object, and the release before reads it as one.
#
# Expected: JSON has no infinity, so a limit that is infinite by default is left out, is null, or is written as Python
# writes it.
# Happens: the upper limit of the time steps of Mamba-2, infinite unless somebody changes it, is written as
# {"__float__": "Infinity"}. transformers 5 reads that back; 4.57 takes the object for the limit without a word.
# Seen with: transformers 5.24.0 (writes), 4.57.3 (reads).
# Why it matters: whoever reads config.json of a Mamba-2, Bamba, Falcon-H1 or Granite hybrid finds an object where a
# number is announced, as soon as the model was saved once.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/new"
python3 -m venv "$tmp/old"
"$tmp/new/bin/pip" install -qq transformers==5.24.0
"$tmp/old/bin/pip" install -qq transformers==4.57.3
cd "$tmp"
"$tmp/new/bin/python" - 2>/dev/null <<'PY'
import json
import math

import transformers
from transformers import AutoConfig, Mamba2Config

print("transformers", transformers.__version__)
Mamba2Config().save_pretrained("m")
with open("m/config.json") as file:
    written = json.load(file)["time_step_limit"]
back = list(AutoConfig.from_pretrained("m").time_step_limit)
print("default:  ", Mamba2Config().time_step_limit)
print("written:  ", written)
print("read back:", back)
assert written == [0.0, {"__float__": "Infinity"}], "changed: infinity is spelled in another way"
assert back == [0.0, math.inf]
PY
"$tmp/old/bin/python" - 2>/dev/null <<'PY'
import transformers
from transformers import AutoConfig

print("transformers", transformers.__version__)
limit = list(AutoConfig.from_pretrained("m").time_step_limit)
print("read:     ", limit)
assert limit == [0.0, {"__float__": "Infinity"}], "changed: the object is understood or refused"
PY
