"""Writes NAME_greedy.json: what transformers continues ten prompts with, in fp32 on the dequantized weights.

    python tests/golden/make_greedy.py NAME PATH_TO_GGUF [NUM_TOKENS]

Per prompt, raw and (where the file has a template) chat-formatted: prompt ids, 64 greedy ids, and at every step the gap
between the two largest logits (where it is tiny, another implementation may honestly differ).
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "What is the difference between a virus and a bacterium?",
    "List three reasons why the sky is blue:\n1.",
    'Translate to French: "Good morning, how are you?"',
    "In 1969, humans first",
    "Write a haiku about the ocean.",
    "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
    "Dear hiring manager,\n\nI am writing to apply for",
]


def main(name: str, path: Path, num_tokens: int = 64) -> None:
    """Generate token by token with the plain model call, so that nothing of `generate` decides anything."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    cases = []
    forms = (False, True) if tokenizer.chat_template else (False,)
    for prompt in PROMPTS:
        for chat in forms:
            if chat:
                text = tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            else:
                text = prompt
            ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
            output, gaps, past = [], [], None
            feed = ids
            for _ in range(num_tokens):
                with torch.inference_mode():
                    result = model(torch.tensor([feed]), past_key_values=past, use_cache=True)
                past = result.past_key_values
                logits = result.logits[0, -1].float()
                top = logits.topk(2).values
                gaps.append(round((top[0] - top[1]).item(), 5))
                output.append(int(logits.argmax()))
                feed = output[-1:]
            cases.append({"prompt": prompt, "chat": chat, "prompt_ids": ids, "output_ids": output, "gaps": gaps})
            print(f"{len(cases)}/{len(forms) * len(PROMPTS)}: smallest gap {min(gaps)}", file=sys.stderr)
    target = Path(__file__).with_name(f"{name}_greedy.json")
    target.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
