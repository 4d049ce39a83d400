#!/usr/bin/env bash
# llguidance takes an end token behind a complete text, but does not count it: taking it back takes one more.
#
# Expected: a token that `consume_token` accepts is one token for `rollback`, so n accepted tokens and `rollback(n)` lead
# back to where they began.
# Happens: behind a text that is complete and cannot go on, `consume_token(eos)` returns True and changes nothing;
# `rollback(1)` then takes back the token before it, and the text is open again. Behind a text that is complete but could
# go on, the end token does count. So whether it counts depends on the grammar.
# Seen with: llguidance 1.9.1.
# Why it matters: speculative decoding accepts a draft with an end token in it, finds a part of it rejected, and rolls
# back as many tokens as were taken: the automaton and the text differ by one token from then on.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq --no-deps llguidance==1.9.1
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """Tokens are bytes; 256 ends a text."""

    eos_token_id, bos_token_id, tokens = 256, None, [bytes([i]) for i in range(256)] + [b"<|end|>"]
    special_token_ids = [256]

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


tokenizer = LLTokenizer(TokenizerWrapper(Bytes()))


def after_end(pattern):
    """Bytes that may follow once "ab" and an end token were taken and one token was taken back."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(pattern))
    assert all(matcher.consume_token(t) for t in b"ab")
    assert matcher.consume_token(256) and not matcher.is_error()
    assert matcher.rollback(1)
    mask = matcher.compute_bitmask()
    return {Bytes.tokens[t] for t in range(257) if mask[t // 8] >> t % 8 & 1}


complete, open_ = after_end("ab"), after_end("ab+")
print('"ab" complete: one token taken back, then may follow', sorted(complete))
print('"ab" could go on: one token taken back, then may follow', sorted(open_))
assert complete == {b"b"}, "changed: an end token behind a complete text"
assert open_ == {b"b", b"<|end|>"}, "changed: an end token behind a text that could go on"
EOF
