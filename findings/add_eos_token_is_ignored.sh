#!/usr/bin/env bash
# A tokenizer_config.json that asks for an end token behind every text no longer gets one.
#
# Expected: add_eos_token: true in the tokenizer_config.json of a Llama tokenizer puts the end token behind a text, as the
# release before does; embedding models whose last token is pooled are saved like this.
# Happens: the ids have no end token, and add_eos_token of the loaded tokenizer is False. add_bos_token fares alike.
# Seen with: transformers 5.24.0 and 4.57.3, tokenizers 0.23.3 and 0.22.1.
# Why it matters: a model that pools the state of its last token gives the embedding of another token, without a warning.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
cat >look.py <<'EOF'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer

words = ["<unk>", "<s>", "</s>", "▁", "a", "▁a"]
plain = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [("▁", "a")], unk_token="<unk>"))
plain.add_special_tokens(["<unk>", "<s>", "</s>"])
folder = Path(sys.argv[1])
folder.mkdir()
plain.save(str(folder / "tokenizer.json"))
config = {
    "tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "add_bos_token": True, "add_eos_token": True,
}
(folder / "tokenizer_config.json").write_text(json.dumps(config))
found = AutoTokenizer.from_pretrained(folder)
ids = found("a")["input_ids"]
print(f"transformers {transformers.__version__}: add_eos_token {found.add_eos_token}, ids of 'a' {ids}")
is_old = transformers.__version__.startswith("4.")
assert (ids[0] == found.bos_token_id) == (ids[-1] == found.eos_token_id) == found.add_eos_token == is_old, "changed"
EOF
for versions in "transformers==4.57.3 tokenizers==0.22.1" "transformers==5.24.0 tokenizers==0.23.3"; do
    name=${versions%% *}
    python3 -m venv "$name"
    # shellcheck disable=SC2086
    "$name/bin/pip" install -qq $versions
    HF_HOME="$tmp" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$name/bin/python" look.py "model-$name"
done
