"""Log-probabilities of prompts: those of the model over the whole text, however it is read, whoever shares it,
to the bit on native kernels."""

import math

import pytest
from test_native import tiled
from test_prefix_cache import make, text
from toy import finish, toy_engine, toy_lm

from stretto.core.plan import StepPlan
from stretto.core.sampling import Sampling
from stretto.core.scores import Outputs
from stretto.engine.engine import Engine
from stretto.engine.request import Request
from stretto.models.lm import LM
from stretto.runner.runner import Step

MIXERS = ["gated_delta", "attention", "mamba2"]
HOW = Sampling(temperature=0, max_tokens=3, prompt_logprobs=2).resolve()
PROMPTS = [text(1, 90), text(2, 1), text(3, 2), text(4, 33), [*text(1, 80), *text(5, 20)]]


@pytest.fixture(scope="module")
def oracle() -> LM:
    return toy_lm(MIXERS)


def check(oracle: LM, request: Request, tolerance: float) -> None:
    """Against the logits of the whole prompt at once, in double precision."""
    prompt = list(request.prompt)
    want = oracle(StepPlan.of([prompt])).log_softmax(-1)
    assert len(request.prompt_logprobs) == len(prompt) - 1
    for row, (token, found) in enumerate(zip(prompt[1:], request.prompt_logprobs, strict=True)):
        assert found.logprob == pytest.approx(want[row, token].item(), abs=tolerance)
        top = want[row].topk(2)
        assert list(found.top) == top.indices.tolist()
        assert list(found.top.values()) == pytest.approx(top.values.tolist(), abs=tolerance)


def serve(engine: Engine, sampling: Sampling = HOW) -> list[Request]:
    requests = [engine.add(prompt, sampling) for prompt in PROMPTS]
    finish(engine)
    return requests


@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}, {"pages": 12, "max_rows": 40}])
def test_through_torch(oracle: LM, sizes: dict[str, int]) -> None:
    for request in serve(toy_engine(oracle, **sizes)):
        check(oracle, request, 1e-9)


def test_natively_in_pieces_and_beside_others_to_the_bit(oracle: LM) -> None:
    lm = tiled(oracle)
    alone = [serve_one(make(lm, prefix_bytes=0), prompt) for prompt in PROMPTS]
    for request in alone:
        check(oracle, request, 5e-4)
    for engine in (make(lm), make(lm, max_rows=7, max_seqs=3)):
        for _ in range(2):  # the second time all of it is cached, and read again
            for found, want in zip(serve(engine), alone, strict=True):
                assert found.prompt_logprobs == want.prompt_logprobs and found.output == want.output
                assert found.job.cached == 0
        plain = serve(engine, Sampling(temperature=0, max_tokens=3).resolve())
        assert plain[0].job.cached and not plain[0].prompt_logprobs, "what was read is left to others"
        engine.runner.cache.check()


def serve_one(engine: Engine, prompt: list[int]) -> Request:
    request = engine.add(prompt, HOW)
    finish(engine)
    return request


def test_a_prompt_that_is_no_number_fails_alone(oracle: LM) -> None:
    engine = make(tiled(oracle))
    broken = engine.add(PROMPTS[0], HOW)
    score = engine.runner.forward

    def spoiled(step: Step) -> Outputs:
        outputs = score(step)
        if broken.rid in step.rids:
            outputs.scores.top = [math.nan] * len(step.plan.wanted)
        return outputs

    engine.runner.forward = spoiled  # type: ignore[method-assign]
    events = []
    while not engine.is_idle:
        events += engine.step()
    assert [event.finish_reason for event in events] == ["error"] and not broken.prompt_logprobs
    engine.runner.forward = score  # type: ignore[method-assign]
    good = engine.add(PROMPTS[3], HOW)
    finish(engine)
    check(oracle, good, 5e-4)
