"""Several prompts in one call: they share every step of the engine, and none changes another's text.

python examples/generate.py
"""

from stretto import LLM, Sampling

PROMPTS = ["The capital of France is", "Water boils at", "def fibonacci(n):\n"]


def main() -> None:
    llm = LLM("smollm2", draft="none")
    sampling = Sampling(temperature=0, max_tokens=24)  # greedy: the same text every time
    for prompt, result in zip(PROMPTS, llm.generate(PROMPTS, sampling), strict=True):
        print(f"{prompt!r} -> {result.text!r}")
        print(f"  {result.usage.completion_tokens} tokens, finish_reason {result.finish_reason}")


if __name__ == "__main__":
    main()
