"""Write smollm2_tokens.json and smollm2_chats.json: what others make of the embedded model's vocabulary and template.

    python tests/golden/make_tokens.py MODEL.gguf

Token ids come from a naive byte-pair encoder written here (the `regex` package, quadratic merging). transformers reads
the file without its pre-tokenizer name, so it may differ where digits are not ASCII, and nowhere else; this is checked.
Rendered chats come from transformers.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

import gguf
import regex
from transformers import AutoTokenizer

HERE = Path(__file__).parent
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "The capital of France is Paris.",
    "It's we've I'll they'd I'm you're DON'T can’t",
    "  two leading spaces",
    "trailing spaces   ",
    "a  b   c    d",
    "\t\ttabs\tinside",
    "line\nbreaks\n\n\nand\r\nwindows\r",
    "\n",
    " \n \n ",
    "\u00a0no-break\u2003em\u200bzero\u3000wide",
    "0 1 12 123 1234 12345 3.14159 1,000,000 1e-9",
    "٠١٢٣ ४५६ Ⅻ ½ ²³ ①",
    "x=1;y2=22;z_3=333",
    "👨‍👩‍👧‍👦 👩🏽‍💻 🇫🇷 ❤️‍🔥",
    "😀😃😄",
    "e\u0301 a\u0308 o\u0302\u0323 n\u0303",
    "é ä ộ ñ",
    "Z̸̡a̴l̵g̶o̷",
    "中文分词测试，没有空格。",
    "日本語のテキストとカタカナ",
    "한국어 문장입니다",
    "עברית مرحبا بالعالم",
    "\u202eright to left\u202c",
    "Привет, мир! Ёлка",
    "Ελληνικά ΣΊΣΥΦΟΣ",
    "ไทยไม่มีช่องว่าง",
    "नमस्ते दुनिया",
    "<|im_start|>user\nHi<|im_end|>\n",
    "text<|endoftext|>more<|im_end|><|im_end|>",
    "<|im_start|",
    "<|im_start |> <| im_end|> |im_end|>",
    "<repo_name>a/b<file_sep>c",
    "\x00\x01\x02\x1f\x7f",
    "\ufeffbom \ufffd \ue000 \U0010ffff",
    "a" * 300,
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 3,
    "supercalifragilisticexpialidocious",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if k != 'a'}  # ok\n",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 42); return 0; }',
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x''y';",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@example.co.uk",
    '{"a": [1, 2.5, null, true], "b\\u00e9": "\\\\"}',
    "C:\\Users\\me\\file.txt ../../etc/passwd",
    "!!!???...---___***///\\\\\\|||~~~```",
    "$100 €50 £20 ¥10 50% 10° ±5 ≤≥≠∞∑∫√",
    "CamelCaseAndsnake_case-kebab.case",
    "iPhone15Pro2024年",
    "don''t ''s 's 'S ’s",
    "MiXeD cAsE tExT wItH nUmBeRs 1a2b3c",
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three\nlines\n"},
    ],
    [{"role": "user", "content": 'Grüße 👩🏽‍💻 中文 <b>&amp;</b> "quoted" {{ 1 }} {% raw %}'}],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "  spaces  "},
        {"role": "assistant", "content": ""},
    ],
]
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class NaiveBPE:
    """Byte-level byte-pair encoding as its definition says."""

    def __init__(self, metadata: dict[str, list[str]]) -> None:
        self.ids = {token: i for i, token in enumerate(metadata["tokens"])}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["merges"])}
        control = [token for token, kind in zip(metadata["tokens"], metadata["token_type"], strict=True) if kind == 3]
        self.control = set(control)
        self.special = regex.compile("(" + "|".join(map(regex.escape, sorted(control, key=len, reverse=True))) + ")")
        kept = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD]
        rest = [b for b in range(256) if b not in kept]
        self.letters = {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(rest)}

    def encode(self, text: str) -> list[int]:
        found = []
        for part in self.special.split(text):
            if part in self.control:
                found.append(self.ids[part])
                continue
            for piece in regex.split(r"(\p{N})", part):
                for word in PATTERN.findall(piece):
                    found += [self.ids[token] for token in self.merge([self.letters[b] for b in word.encode()])]
        return found

    def merge(self, tokens: list[str]) -> list[str]:
        while True:
            pairs = [(self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(pairwise(tokens))]
            if not pairs or min(pairs)[0] == 1 << 60:
                return tokens
            at = min(pairs)[1]
            tokens = [*tokens[:at], tokens[at] + tokens[at + 1], *tokens[at + 2 :]]


def main(model: Path) -> None:
    fields = gguf.GGUFReader(model).fields
    names = ("tokens", "merges", "token_type")
    naive = NaiveBPE({name: fields[f"tokenizer.ggml.{name}"].contents() for name in names})
    theirs = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    cases = []
    for text in TEXTS:
        ids = naive.encode(text)
        other = theirs(text, add_special_tokens=False).input_ids
        if ids != other and not regex.search(r"[\p{N}--[0-9]]", text, flags=regex.V1):
            sys.exit(f"transformers differs on {text!r}: {other} instead of {ids}")
        cases.append({"text": text, "ids": ids})
    (HERE / "smollm2_tokens.json").write_text(json.dumps(cases, ensure_ascii=True, indent=0) + "\n")
    chats = [
        {
            "messages": chat,
            "prompt": theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
            "closed": theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=False),
        }
        for chat in CHATS
    ]
    (HERE / "smollm2_chats.json").write_text(json.dumps(chats, ensure_ascii=True, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
