#!/usr/bin/env bash
# A token added to a Llama-2 style tokenizer is only found after a space.
#
# Expected: add_tokens(["<tool>"]) makes "<tool>" one token wherever it stands in the text.
# Happens: an added token is normalized by default, and the normalizer of such tokenizers puts U+2581 in front. What is
# searched in the text is "▁<tool>": found at the start and after a space, cut into letters elsewhere. id_to_token
# returns that spelling too, and token_to_id does not know it.
# Seen with: tokenizers 0.23.3.
# Why it matters: markers often follow a word or a line end directly. The model is then trained on letters, not on the
# marker, and no error says so. AddedToken("<tool>", normalized=False) does what was expected.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq tokenizers==0.23.3
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import tokenizers
from tokenizers import AddedToken, Tokenizer, models
from tokenizers.normalizers import Prepend, Replace, Sequence

print("tokenizers", tokenizers.__version__)


def build(added):
    vocab = {piece: i for i, piece in enumerate(["<unk>", "▁", *"abt<>ol"])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    assert tokenizer.add_tokens([added]) == 1
    return tokenizer


texts = ["a <tool>b", "a<tool>b"]
default, exact = build("<tool>"), build(AddedToken("<tool>", normalized=False))
number = default.token_to_id("<tool>")
found = {text: number in default.encode(text).ids for text in texts}
for text in texts:
    print(repr(text), "found:", found[text], default.encode(text).tokens)
spelling = default.id_to_token(number)
print("id_to_token:", repr(spelling), "and back:", default.token_to_id(spelling))
assert found == {"a <tool>b": True, "a<tool>b": False}, "changed: found everywhere"
assert spelling == "▁<tool>" and default.token_to_id(spelling) is None
assert all(exact.token_to_id("<tool>") in exact.encode(text).ids for text in texts)
EOF
