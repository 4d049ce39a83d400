#!/usr/bin/env bash
# Two templates in a row: the second one takes the output of the first for a pair of texts.
#
# Expected: Sequence([add <bos> in front, add <eos> at the end]) gives <bos> text <eos> for one text.
# Happens: the first template returns two parts, its special token and the text. The second finds two parts and uses its
# "pair" template, in which <eos> stands between the two: <bos> <eos> text <eos>.
# Seen with: tokenizers 0.23.3.
# Why it matters: appending a template to the post-processor of a tokenizer is how one adds an end token. With
# "$A $B <eos>" as its pair template the result happens to be right; with one that closes each text it is not.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq tokenizers==0.23.3
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import tokenizers
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import Sequence, TemplateProcessing

print("tokenizers", tokenizers.__version__)
tokenizer = Tokenizer(models.WordLevel({"good": 0, "day": 1, "<bos>": 2, "<eos>": 3}, unk_token="good"))
tokenizer.pre_tokenizer = Whitespace()
begin = TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)])
end = TemplateProcessing(single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 3)])


def tokens(processor):
    tokenizer.post_processor = processor
    return tokenizer.encode("good day").tokens


first, second, both = tokens(begin), tokens(end), tokens(Sequence([begin, end]))
print("begin:     ", first)
print("end:       ", second)
print("begin, end:", both)
assert first == ["<bos>", "good", "day"]
assert second == ["good", "day", "<eos>"]
assert both == ["<bos>", "<eos>", "good", "day", "<eos>"], "changed: one end token"
EOF
