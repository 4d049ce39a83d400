#!/usr/bin/env bash
# llguidance rounds whole numbers of a JSON schema to double precision: what it forces is then another number.
#
# Expected: {"const": N} lets exactly one text through, N in decimal digits; `enum` with one value, too. Both are 64-bit
# integers here, as ids of databases and chat services are, and Python's and Rust's JSON hold them exactly.
# Happens: 9007199254740993 (2**53 + 1) is written 9007199254740992, and 1234567890123456789 is written
# 1234567890123456768. An integer between `minimum` and `maximum` of that value is the rounded one, too. Nothing is
# reported. A whole number of more than 64 bits is refused in a Python object ("not JSON serializable"), also under
# `maximum`, and taken in the same schema as a text.
# Seen with: llguidance 1.9.1.
# Why it matters: an answer that was held to a schema does not fulfil it, and an id chosen from an `enum` is that of
# something else.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq --no-deps llguidance==1.9.1
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import json

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """Tokens are bytes; 256 ends a text."""

    eos_token_id, bos_token_id, tokens = 256, None, [bytes([i]) for i in range(256)] + [b"<|end|>"]
    special_token_ids = [256]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))


def forced(schema):
    """The text that a schema leaves no choice about."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.is_error(), matcher.get_error()
    text = b""
    while True:
        mask = matcher.compute_bitmask()
        may = [t for t in range(257) if mask[t // 8] >> t % 8 & 1]
        assert len(may) == 1, may
        if may == [256]:
            return text.decode()
        text += bytes(may)
        assert matcher.consume_token(may[0])


for number, seen in ((2**53, 2**53), (2**53 + 1, 2**53), (1234567890123456789, 1234567890123456768)):
    schemas = {"const": number}, {"enum": [number]}, {"type": "integer", "minimum": number, "maximum": number}
    found = [forced(schema) for schema in schemas]
    print(number, "is written", found)
    assert found == [str(seen)] * 3, f"changed: what is written for {number}"
large = {"type": "integer", "maximum": 10**30}
try:
    LLMatcher.grammar_from_json_schema(large)
except ValueError as problem:
    print("as an object:", problem)
else:
    raise AssertionError("changed: more than 64 bits in an object")
assert not LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(large))).is_error()
print("as a text: taken")
EOF
