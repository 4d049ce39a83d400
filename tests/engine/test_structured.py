"""Laws of structured output in the engine: the ids are those of plain decoding under the same masks, whatever is
drafted, forced, preempted or batched, and the text is one of the grammar's."""

import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import GREEDY, MODELS, run, settled
from drafters import Oracle, Saboteur, TreeOracle
from grammars import Check, fulfils, random_grammar, small_tokenizer, toy_of
from test_engine import drafter_named
from toy import finish, nodes, toy_engine

from stretto import LLM, AsyncLLM, Sampling
from stretto.core.drafter import Draft, Drafter
from stretto.core.errors import UserError
from stretto.core.grammar import Grammar
from stretto.core.plan import StepPlan
from stretto.core.sampling import Noise
from stretto.core.tree import Tree
from stretto.engine.constrained import legal
from stretto.engine.engine import Engine
from stretto.engine.judges.ratio import Ratio
from stretto.engine.request import Event, Request
from stretto.kernels.sampling import RowSampling, picks
from stretto.models.lm import LM
from stretto.text.grammar.compiler import Compiler
from stretto.text.tokenizer import Tokenizer

PROMPT = (5, 30, 7, 90, 11)
LONGEST = 180


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer)


@pytest.fixture(scope="module")
def lm(tokenizer: Tokenizer) -> LM:
    return toy_of(tokenizer)


class Jobs:
    """Eight requests with grammars of their own, and what plain decoding gives for each under its masks."""

    def __init__(self, lm: LM, compiler: Compiler, temperature: float) -> None:
        self.compiler, rng = compiler, random.Random(f"grammars {temperature}")
        self.checks: list[Check] = []
        self.samplings: list[Sampling] = []
        self.prompts = [(*PROMPT * 7, n) for n in range(8)]
        self.plain: list[list[int]] = []
        while (n := len(self.plain)) < 8:
            grammar, check = random_grammar(rng)
            sampling = Sampling(temperature=temperature, seed=n, grammar=grammar, max_tokens=LONGEST).resolve()
            plain = self._plain(lm, self.prompts[n], sampling)
            if n < 2 or len(plain) > 16:  # two short texts
                self.checks.append(check)
                self.samplings.append(sampling)
                self.plain.append(plain)

    def _plain(self, lm: LM, prompt: tuple[int, ...], sampling: Sampling) -> list[int]:
        assert sampling.grammar is not None and sampling.seed is not None
        matcher, tokens = self.compiler.compile(sampling.grammar).matcher(), list(prompt)
        while not matcher.is_over and len(tokens) < len(prompt) + LONGEST:
            row = RowSampling(sampling, Noise(sampling.seed), len(tokens), allowed=matcher.allowed())
            tokens += picks(lm(StepPlan.of([tokens]))[-1:], [row])
            matcher.accept(tokens[-1:])
        return tokens[len(prompt) :]

    def add(self, engine: Engine, which: Sequence[int] = range(8)) -> list[Request]:
        return [
            engine.add(self.prompts[n], self.samplings[n], matcher=self.compiler.compile(grammar).matcher())
            for n in which
            if (grammar := self.samplings[n].grammar) is not None
        ]


@pytest.fixture(scope="module", params=[0.0, 1.5], ids=["greedy", "seeded"])
def jobs(request: pytest.FixtureRequest, lm: LM, compiler: Compiler) -> Jobs:
    return Jobs(lm, compiler, request.param)


def engine_of(lm: LM, tokenizer: Tokenizer, drafter: Drafter | None = None, **options: Any) -> Engine:
    policies = {"policies": nodes(4), "drafter": drafter} if drafter is not None else {}
    how = {"context": 256, "max_seqs": 8, "max_rows": 64, **policies, **options}
    return toy_engine(lm, eos_ids=tokenizer.eos_ids, vocab_size=tokenizer.vocab_size, **how)


def drafter_of(name: str, jobs: Jobs, tokenizer: Tokenizer) -> Drafter | None:
    known = {prompt: tuple(plain) for prompt, plain in zip(jobs.prompts, jobs.plain, strict=True)}
    vocab = tokenizer.vocab_size
    return {
        "none": lambda: None,
        "ngram": lambda: drafter_named("ngram", {}),
        "oracle": lambda: Oracle(known),
        "saboteur": lambda: Saboteur(known, vocab, tree=True),
        "tree": lambda: TreeOracle(known, vocab),
    }[name]()


def test_the_texts_are_the_grammars_own(jobs: Jobs, tokenizer: Tokenizer) -> None:
    for plain, check in zip(jobs.plain, jobs.checks, strict=True):
        assert len(plain) < LONGEST, "these grammars have short texts"
        assert check(tokenizer.decode(plain)), tokenizer.decode(plain)
    assert len({tuple(plain) for plain in jobs.plain}) > 4


@pytest.mark.parametrize("drafter", ["none", "ngram", "oracle", "saboteur", "tree"])
def test_drafts_and_companions_change_no_token(drafter: str, jobs: Jobs, lm: LM, tokenizer: Tokenizer) -> None:
    made = drafter_of(drafter, jobs, tokenizer)
    engine = engine_of(lm, tokenizer, made)
    requests = jobs.add(engine)
    assert list(finish(engine).values()) == jobs.plain, "all at once"
    if isinstance(made, Oracle | TreeOracle):
        assert 0 < made.accepted <= made.proposed, "it does not hear of forced tokens as of its own"
        assert sum(r.timeline.accepted for r in requests) > len(requests)
    alone = engine_of(lm, tokenizer, drafter_of(drafter, jobs, tokenizer))
    for n in (1, 4):
        jobs.add(alone, [n])
        assert list(finish(alone).values())[-1] == jobs.plain[n], "one by one"


@pytest.mark.parametrize("drafter", ["none", "tree"])
def test_preemption_changes_no_token(drafter: str, jobs: Jobs, lm: LM, tokenizer: Tokenizer) -> None:
    longest = max(len(p) + len(q) for p, q in zip(jobs.prompts, jobs.plain, strict=True))
    needed = -(-longest // 16) + 1
    engine = engine_of(lm, tokenizer, drafter_of(drafter, jobs, tokenizer), pages=needed + 2, context=16 * needed)
    which = sorted(range(8), key=lambda n: len(jobs.plain[n]))[-3:] * 2
    requests = jobs.add(engine, which)
    assert list(finish(engine).values()) == [jobs.plain[n] for n in which]
    assert sum(r.job.num_preemptions for r in requests) > 0


def test_the_ratio_judge_obeys_the_masks(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    jobs = Jobs(lm, compiler, 0.0)
    engine = engine_of(lm, tokenizer, drafter_of("tree", jobs, tokenizer), judge=Ratio())
    jobs.add(engine)
    assert list(finish(engine).values()) == jobs.plain


def test_forced_tokens_are_drafted_and_all_accepted(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"the quick brown fox": {"const": 12}, "jumps": {"type": "boolean"}},
        "required": ["the quick brown fox", "jumps"],
        "additionalProperties": False,
    }
    sampling = Sampling(temperature=0, grammar=Grammar.json_schema(schema)).resolve()
    assert sampling.grammar is not None
    engine = engine_of(lm, tokenizer)
    request = engine.add(PROMPT, sampling, matcher=compiler.compile(sampling.grammar).matcher())
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    text = tokenizer.decode(request.output)
    assert text in ('{"the quick brown fox": 12, "jumps": true}', '{"the quick brown fox": 12, "jumps": false}')
    assert sum(e.drafted for e in events) == sum(e.accepted for e in events) > 8
    assert len(events) < len(request.output) / 2
    assert events[-1].finish_reason == "stop" and not tokenizer.eos_ids & set(request.output)
    forced = tokenizer.encode('{"the quick brown fox": 12, "jumps":')  # " t" and " f" are tokens
    assert request.output[: len(forced)] == forced, "the tokenizer's own split"


def test_a_text_may_end_only_where_its_grammar_does(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    """With `ignore_eos` an end token ends the text all the same: nothing could follow it."""
    engine = engine_of(lm, tokenizer)
    for ignore_eos in (False, True):
        bias = {token: 100.0 for token in tokenizer.eos_ids}
        grammar = Grammar.regex("a{3,30}")
        sampling = Sampling(temperature=0, grammar=grammar, logit_bias=bias, ignore_eos=ignore_eos).resolve()
        request = engine.add(PROMPT, sampling, matcher=compiler.compile(grammar).matcher())
        finish(engine)
        assert tokenizer.decode(request.output) == "aaa"


def test_min_tokens_moves_the_end_as_far_as_the_grammar_goes(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    engine = engine_of(lm, tokenizer)
    bias = {token: 100.0 for token in tokenizer.eos_ids}
    for pattern, min_tokens, text in (("a{1,30}", 7, "a" * 7), ("a{1,5}", 20, "a" * 5)):
        grammar = Grammar.regex(pattern)
        sampling = Sampling(temperature=0, grammar=grammar, logit_bias=bias, min_tokens=min_tokens).resolve()
        request = engine.add(PROMPT, sampling, matcher=compiler.compile(grammar).matcher())
        finish(engine)
        assert tokenizer.decode(request.output) == text


@pytest.mark.parametrize("drafter", ["none", "ngram", "noise"])
def test_what_comes_before_the_grammar_is_free(drafter: str, lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    """The free part is what the model says without a grammar, ends left out, up to its budget or to `after`."""
    from drafters import Noise as Random

    made = {"none": None, "ngram": drafter_named("ngram", {}), "noise": Random(tokenizer.vocab_size)}[drafter]
    engine = engine_of(lm, tokenizer, made)
    free = engine.add(PROMPT, Sampling(temperature=0, ignore_eos=True, max_tokens=60, logit_bias={1: -100}).resolve())
    finish(engine)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    letter, num_free = last_byte(tokenizer, free.output)
    for after, budget in ((letter, None), ("</think>", 9)):
        grammar = Grammar.json_schema(schema, after=after, budget=budget)
        sampling = Sampling(temperature=0, grammar=grammar, max_tokens=120).resolve()
        request = engine.add(PROMPT, sampling, matcher=compiler.compile(grammar).matcher())
        finish(engine)
        text = tokenizer.decode(request.output, skip_special=False)
        thought, _, rest = text.partition(after)
        assert thought and fulfils(rest, schema), text
        assert request.output[: budget or num_free] == free.output[: budget or num_free]


def last_byte(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, int]:
    """A letter that ends a token of the second half and comes nowhere before that, and how many tokens that makes."""
    for n in range(len(tokens) // 2, len(tokens)):
        before, last = tokenizer.decode(tokens[:n]), tokenizer.token_bytes(tokens[n]).decode(errors="replace")[-1:]
        if last.isascii() and last.isalpha() and last not in before:
            return last, n + 1
    raise AssertionError("the toy says nothing new")


class Broken:
    """A matcher that fails, or allows nothing, after some tokens."""

    def __init__(self, lives: int, *, is_empty: bool) -> None:
        self.lives, self.is_empty, self.read = lives, is_empty, 0
        self.is_over = False

    def allowed(self) -> bytes:
        if self.read < self.lives:
            return b"\xff" * 64
        if self.is_empty:
            return b"\0" * 64
        raise UserError("the grammar is too complex at this place")

    def masks(self, tokens: Sequence[int], tree: Tree) -> list[bytes | None]:
        return [self.allowed(), *[b"\xff" * 64 if self.read + n < self.lives else b"" for n in tree.depths[1:]]]

    def legal(self, tokens: Sequence[int], tree: Tree) -> list[int]:
        return [] if self.read >= self.lives else list(range(1, len(tree)))

    def forced(self, limit: int) -> tuple[int, ...]:
        return ()

    def accept(self, tokens: Sequence[int]) -> None:
        self.read += len(tokens)

    def rollback(self, num_tokens: int) -> None:
        self.read -= num_tokens


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("drafter", ["none", "ngram"])
def test_a_grammar_that_fails_ends_its_request_alone(
    drafter: str, is_empty: bool, jobs: Jobs, lm: LM, tokenizer: Tokenizer
) -> None:
    engine = engine_of(lm, tokenizer, drafter_of(drafter, jobs, tokenizer))
    requests = jobs.add(engine, range(4))
    bad = engine.add(jobs.prompts[5], jobs.samplings[5], matcher=Broken(3, is_empty=is_empty))
    outputs: dict[int, list[int]] = {}
    errors: dict[int, str] = {}
    while not engine.is_idle:
        for event in engine.step():
            outputs.setdefault(event.rid, []).extend(event.token_ids)
            if event.error is not None:
                errors[event.rid] = str(event.error)
        engine.runner.cache.check()
    assert list(errors) == [bad.rid] and len(bad.output) == 3
    assert ("no token is allowed" if is_empty else "too complex") in errors[bad.rid]
    assert [outputs[r.rid] for r in requests] == jobs.plain[:4]


def test_a_grammar_needs_its_matcher(lm: LM, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="a grammar needs a tokenizer"):
        engine_of(lm, tokenizer).add(PROMPT, Sampling(grammar=Grammar.regex("a")).resolve())


def test_log_probabilities_are_the_models_own(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    """As bias, penalties and bans, a grammar changes what is chosen, not what is reported."""
    grammar = Grammar.regex("a{4}z")
    sampling = Sampling(temperature=0, grammar=grammar, logprobs=2).resolve()
    engine = engine_of(lm, tokenizer)
    request = engine.add(PROMPT, sampling, matcher=compiler.compile(grammar).matcher())
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    found = [one.logprob for event in events for one in event.logprobs]
    law = lm(StepPlan.of([[*PROMPT, *request.output]])).double().log_softmax(-1)
    want = [float(law[len(PROMPT) - 1 + n, token]) for n, token in enumerate(request.output)]
    assert found == pytest.approx(want, abs=1e-5)


def test_of_drawn_tokens_the_first_forbidden_one_stays(lm: LM, compiler: Compiler, tokenizer: Tokenizer) -> None:
    """The law of what replaces it depends on its being rejected; of chosen tokens nothing forbidden is verified."""
    a, b, x = (tokenizer.encode(text)[0] for text in "abx")
    grammar = Grammar.regex("a[ab]{9}")
    engine = engine_of(lm, tokenizer)
    request = engine.add(PROMPT, Sampling(grammar=grammar).resolve(), matcher=compiler.compile(grammar).matcher())
    tokens = (a, b, x, a)
    assert legal(Draft(tokens), request).tokens == (a, b)
    assert legal(Draft(tokens, probs=torch.ones(4, tokenizer.vocab_size)), request).tokens == (a, b, x)
    tree = Tree.drafted([0, 0, 1, 2, 1])
    kept = legal(Draft((x, a, a, b, b), tree), request)
    assert (kept.tokens, kept.tree.parents) == ((a, b), (-1, 0, 1))


# -- the Python API ------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ["torch", "native"])
def test_llm_and_async_llm_answer_in_json(name: str, folder: Path) -> None:
    llm = MODELS[name](folder)
    how = Sampling(temperature=1, seed=3, grammar=Grammar.json_schema(SCHEMA))
    first, second = llm.generate(["ab", "c"], how)
    assert fulfils(first.text, SCHEMA) and first.finish_reason == second.finish_reason == "stop"
    compiled_in: set[str] = set()
    matcher = llm.matcher

    def noted(sampling: Sampling) -> object:
        if sampling.grammar is not None:
            compiled_in.add(threading.current_thread().name.rpartition("_")[0])
        return matcher(sampling)

    llm.matcher = noted  # type: ignore[method-assign,assignment]

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            bad = Sampling(grammar=Grammar.json_schema({"uniqueItems": True}))
            with pytest.raises(UserError, match="uniqueItems"):
                await several.generate(["ab"], bad)
            both = await several.generate(["ab", [1, 2], "c"], [how, GREEDY, how])
            assert [one.text for one in (both[0], both[2])] == [first.text, second.text]
            assert both[1].finish_reason == "length"
            await settled(several, llm)

    run(main())
    assert compiled_in == {"stretto-encode"}, "never in the engine's thread"


def test_no_steps_run_ahead_of_a_grammar(folder: Path) -> None:
    """Where nobody has to be asked, native engines run 16 plain steps as one; masks have to be asked for."""
    llm = LLM(folder, backend="native", draft="none", max_seqs=2)
    for temperature in (0.0, 1.0):
        how = Sampling(temperature=temperature, seed=1, grammar=Grammar.regex("[a-f]{60}"))
        free, found = llm.generate(["ab", "ab"], [GREEDY, how])
        assert re.fullmatch("[a-f]{60}", found.text) and found.finish_reason == "stop"
        assert found.timings.steps > 16 and not re.fullmatch("[a-f]*", free.text)
        assert llm.generate(["ab"], how)[0].text == found.text
