"""The program of `trial`: grammars in, complaints out. It imports llguidance and nothing of ours.

The first line of its input is an object: `limits`, `memory`, `size` of the vocabulary, its `special` tokens by id and
its `ends`. Beside these a vocabulary of bytes is enough: what a grammar costs to compile hardly depends on the other
tokens. The stack is half of the least that threads have where the grammar is compiled again.
"""

import json
import resource
import sys
import threading
from pathlib import Path


def main() -> None:
    given = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import llguidance

    special = {int(i): name.encode() for i, name in given["special"].items()}
    size = max(given["size"], len(special) + 256)
    byte_ids = [i for i in range(size) if i not in special][:256]
    found = [b""] * size
    for i, name in special.items():
        found[i] = name
    for byte, i in enumerate(byte_ids):
        found[i] = bytes([byte])

    class Bytes:
        eos_token_id, bos_token_id, special_token_ids, tokens = given["ends"][0], None, list(special), found

        def __call__(self, text: str | bytes) -> list[int]:
            return [byte_ids[byte] for byte in (text.encode() if isinstance(text, str) else text)]

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), eos_token=given["ends"], slices=[])
    limits = llguidance.LLParserLimits(**given["limits"])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + given["memory"],) * 2)
    print(json.dumps(""), flush=True)
    for line in sys.stdin:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        print(json.dumps(matcher.get_error()), flush=True)


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
