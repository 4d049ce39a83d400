#!/usr/bin/env bash
# One call with a length limit changes the tokenizer file that is saved later.
#
# Expected: truncation=True, max_length=4 concern this call. save_pretrained writes the tokenizer that was loaded.
# Happens: the limit stays in the tokenizer and is written into tokenizer.json. transformers does not notice, because it
# sets the limit anew with each call; the tokenizers library, and others that honour the file, cut every text.
# Seen with: transformers 5.24.0, tokenizers 0.23.3.
# Why it matters: a script that trains with a limit and then saves publishes a tokenizer that silently shortens prompts
# in other programs, while all checks with transformers pass.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq transformers==5.24.0 tokenizers==0.23.3
cd "$tmp"
HF_HOME="$tmp" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$tmp/venv/bin/python" - <<'EOF'
import transformers
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

print("transformers", transformers.__version__)
text = "one two three four five six"
vocab = {word: i for i, word in enumerate(text.split())}
base = Tokenizer(models.WordLevel(vocab, unk_token="one"))
base.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=base)


def reload(folder):
    tokenizer.save_pretrained(folder)
    file = Tokenizer.from_file(f"{folder}/tokenizer.json")
    print(folder, "truncation in the file:", file.truncation)
    return file.encode(text).ids, AutoTokenizer.from_pretrained(folder)(text).input_ids


before = reload("before")
tokenizer(text, truncation=True, max_length=4)
after = reload("after")
print("ids before:", before[0], "after:", after[0], "after, in transformers:", after[1])
assert before == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
assert after[0] == [0, 1, 2, 3], "changed: the limit of a call is not saved"
assert after[1] == [0, 1, 2, 3, 4, 5]
EOF
