"""Files that people publish, against transformers on their dequantized weights (tests/golden/make_greedy.py).

SmolLM2, which every run of the tests has, is in test_smollm2.py; these are pulled for the long tests.
"""

import json
from pathlib import Path

import pytest

from stretto import LLM, Sampling

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = {"gemma-3-270m": "gemma3", "qwen2.5-coder-0.5b": "qwen2.5_coder"}

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.mark.parametrize("model", MODELS)
def test_greedy_equals_transformers(model: str) -> None:
    """Prompts are cut as there, and natively, with drafts, every answer that has no near tie is the same."""
    cases = json.loads((GOLDEN / f"{MODELS[model]}_greedy.json").read_text())
    llm = LLM(model, context=512, draft="ngram")
    assert all(llm.encode(case["prompt"]) == case["prompt_ids"] for case in cases if not case["chat"])
    sampling = Sampling(temperature=0, max_tokens=len(cases[0]["output_ids"]), ignore_eos=True)
    found = [list(one.token_ids) for one in llm.generate([case["prompt_ids"] for case in cases], sampling)]
    same = [ids == case["output_ids"] for ids, case in zip(found, cases, strict=True)]
    assert all(equal or min(case["gaps"]) < 0.05 for equal, case in zip(same, cases, strict=True))
    assert sum(same) > 0.8 * len(cases)
