#!/usr/bin/env bash
# A word added to a byte-level tokenizer does not decode to itself if it has an accent.
#
# Expected: add_tokens(["čas"]), encode, decode gives the word back.
# Happens: the byte-level decoder reads the added word as if it were spelled in the byte alphabet, in which U+010D is
# the byte 13. The result starts with a carriage return. "é" gives one byte that is not valid UTF-8. A letter outside of
# the byte alphabet is left alone, so "日" works.
# Seen with: tokenizers 0.23.3.
# Why it matters: vocabularies are extended with words of a language. Training sees the right id, and all generated text
# with such a word is wrong. Nothing fails on ASCII words, where this is usually tried.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq tokenizers==0.23.3
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

print("tokenizers", tokenizers.__version__)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
words = ["čas", "café", "time", "日"]
before = {word: tokenizer.decode(tokenizer.encode(word).ids) for word in words}
tokenizer.add_tokens(words)
after = {}
for word in words:
    ids = tokenizer.encode(word).ids
    assert len(ids) == 1
    after[word] = tokenizer.decode(ids)
    print(ascii(word), "before it was added:", ascii(before[word]), "after:", ascii(after[word]))
assert all(before[word] == word for word in words)
assert after["čas"] == "\ras", "changed: the added word decodes to itself"
assert after["café"] == "caf\ufffd"
assert after["time"] == "time" and after["日"] == "日"
EOF
