"""Drafts: guess the next tokens from the text so far, verify all of them in one step, keep what is right.

The text with drafts is the text without; only the number of steps differs. (`float32` is the reference mode. In
bfloat16 two words can tie to the last bit, and then the order of a sum decides.) Text that repeats itself drafts well.

    python examples/draft.py
"""

from stretto import LLM, Sampling

PROMPT = "one two three four, one two three four, one two three four, one two"


def main() -> None:
    sampling = Sampling(temperature=0, max_tokens=32)
    texts: list[str] = []
    for draft in ("none", "ngram"):
        result = LLM("smollm2", draft=draft, dtype="float32").generate(PROMPT, sampling)[0]
        t = result.timings
        print(f"draft={draft}: {result.usage.completion_tokens} tokens in {t.steps} steps", end="; ")
        print(f"{t.draft_n} drafted, {t.draft_n_accepted} accepted")
        texts.append(result.text)
    print(texts[0])
    print("same text:", texts[0] == texts[1])


if __name__ == "__main__":
    main()
