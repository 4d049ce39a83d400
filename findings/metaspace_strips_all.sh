#!/usr/bin/env bash
# The Metaspace decoder removes the whole indentation of a text, SentencePiece one space.
#
# Expected: SentencePiece puts one space in front of a text and removes one when it decodes. The Metaspace decoder of
# tokenizers is made for the same pieces and does the same.
# Happens: it removes every U+2581 of the first piece. If the vocabulary has pieces of several spaces, as vocabularies
# for code have, four spaces in front of a text become none.
# Seen with: tokenizers 0.23.3, sentencepiece 0.2.3.
# Why it matters: completed code loses its indentation. With pieces of one space each both agree.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq tokenizers==0.23.3 sentencepiece==0.2.3
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import io

import sentencepiece
import tokenizers
from tokenizers import decoders

print("tokenizers", tokenizers.__version__, "sentencepiece", sentencepiece.__version__)
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["def f(x):", "    return x", "    if x:", "        return f(x)"] * 50),
    model_writer=model,
    model_type="bpe",
    vocab_size=40,
    hard_vocab_limit=False,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    num_threads=1,
    minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
pieces = processor.encode("    return x", out_type=str)
right, other = processor.decode(pieces), decoders.Metaspace().decode(pieces)
print("pieces:       ", pieces)
print("sentencepiece:", repr(right))
print("Metaspace:    ", repr(other))
assert pieces[0] == "▁" * 5 and right == "    return x"
assert other == "return x", "changed: only one space is removed"
assert decoders.Metaspace().decode(["▁"] * 5 + ["return"]) == "    return"
EOF
