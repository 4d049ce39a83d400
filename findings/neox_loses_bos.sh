#!/usr/bin/env bash
# One tokenizer class ignores both places that ask for a begin token.
#
# Expected: tokenizer.json has a post-processor that puts <s> in front, and tokenizer_config.json says add_bos_token.
# Both files agree, so the ids start with <s> whatever tokenizer_class is.
# Happens: with GPTNeoXTokenizerFast they do not. add_bos_token is dropped because there is a tokenizer.json, and the
# post-processor of tokenizer.json is then replaced by one without <s>, because the flag is no longer set.
# Seen with: transformers 5.24.0, tokenizers 0.23.3.
# Why it matters: the prompt lacks its first token in transformers and has it in everything that reads tokenizer.json.

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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

print("transformers", transformers.__version__)
vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<s>", "</s>"])  # ids 256 and 257
tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 256)]
)
tokenizer.save("tokenizer.json")


def ids(name):
    config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    Path("tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(".")("hi").input_ids


right = Tokenizer.from_file("tokenizer.json").encode("hi").ids
generic, neox = ids("PreTrainedTokenizerFast"), ids("GPTNeoXTokenizerFast")
print("tokenizer.json by itself:", right)
print("PreTrainedTokenizerFast: ", generic)
print("GPTNeoXTokenizerFast:    ", neox)
assert right == generic and right[0] == 256
assert neox == right[1:], "changed: the begin token is kept"
EOF
