"""Score a text: the log-probability of every token after the ones before it, from one forward pass without a cache.

python examples/score.py
"""

import torch

from stretto import LLM
from stretto.core.plan import StepPlan

TEXT = "The sky is blue and the grass is green."


def main() -> None:
    llm = LLM("smollm2", draft="none", dtype="float32")
    ids = llm.encode(TEXT)
    model = llm.engine.runner.model
    with torch.inference_mode():
        logits_RW = model(StepPlan.of([ids]))
    logprobs = logits_RW[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    for token, logprob in zip(ids[1:], logprobs.tolist(), strict=True):
        print(f"{logprob:8.3f}  {llm.tokenizer.decode([token])!r}")
    print(f"perplexity {(-logprobs.mean()).exp():.2f} over {len(logprobs)} tokens")


if __name__ == "__main__":
    main()
