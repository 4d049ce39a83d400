"""`Group`: all texts of one search, under one budget. Fork, score, join; leaving it ends what runs.

A child continues the tokens of its parent, so the prefix cache has the pages of both: a fork costs its own tokens.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypedDict, Unpack

from stretto.core.sampling import Sampling
from stretto.engine.request import TokenLogprobs
from stretto.llm.results import Chunk, Result
from stretto.solve.budget import Budget
from stretto.solve.extract import Extract
from stretto.solve.model import Model
from stretto.solve.requests import Requests
from stretto.solve.sockets import Scorer
from stretto.solve.together import as_ended, together
from stretto.solve.tree import Node

MOST_TOKENS = 512
"""Tokens of an answer, unless `Sampling.max_tokens` says how many."""


class How(TypedDict, total=False):
    """How nodes are written. width: so many at a time (0 = all). max_tokens: of each (default: those of an answer).
    stop: strings that end a step. logprobs: those of this many of the likeliest tokens, with every token."""

    width: int
    max_tokens: int
    stop: Sequence[str]
    logprobs: int | None


class Group:
    """models: those that write, the strongest first. sampling: of every text; its seed and the path of a node decide
    the noise of the node. watch: called whenever tokens came."""

    def __init__(
        self,
        models: Sequence[Model],
        question: str,
        *,
        budget: Budget,
        sampling: Sampling,
        extract: Extract,
        scorer: Scorer,
        watch: Callable[["Group"], None] = lambda group: None,
    ) -> None:
        assert models and sampling.seed is not None
        self.models, self.question, self.extract, self.scorer = models, question, extract, scorer
        self.roots: list[Node] = []
        self.max_tokens, self.seed = sampling.max_tokens or MOST_TOKENS, sampling.seed
        self._sampling, self._watch = sampling, watch
        self.requests = Requests(models, budget)
        self._questions: dict[int, Sequence[int]] = {}  # as prompts, by model

    # -- fork and join ---------------------------------------------------------------------------------------------

    async def ask(self, model: int = 0) -> Node:
        """A root: the question, for one of the models."""
        return self._root(model, await self._question(model))

    async def join(self, nodes: Sequence[Node], suffix: str, *, model: int = 0, quote: int | None = None) -> Node:
        """A root that joins texts: the question, what they say, in this order, and `suffix`. quote: of each text the
        last tokens, so many. Texts of another model are encoded anew."""
        return self._root(model, await self._joined(nodes, suffix, model, quote), tuple(nodes))

    def fork(self, node: Node, num: int = 1) -> list[Node]:
        """So many more children of a node that has ended. They are open: `grow` them."""
        assert node.ending != "open"
        first = len(node.children)
        for i in range(first, first + num):
            child = Node(path=(*node.path, i), prompt=node.ids, parent=node, model=node.model, solution=node.solution)
            node.children.append(child)
        return node.children[first:]

    async def grow(self, nodes: Sequence[Node], **how: Unpack[How]) -> None:
        """Write open nodes, all to their end."""
        async with aclosing(self.ended(nodes, **how)) as ended:
            async for _ in ended:
                pass

    async def ended(self, nodes: Sequence[Node], **how: Unpack[How]) -> AsyncGenerator[Node, None]:
        """Write open nodes, and yield each as it ends. Closing the generator cuts those that run."""
        work = [self._write(node, how) for node in nodes]
        try:
            async with aclosing(as_ended(work, how.get("width", 0))) as ended:
                async for node in ended:
                    yield node
        finally:
            for node in nodes:
                if node.ending == "open":  # it was not begun
                    node.ending = "cut"

    # -- score -----------------------------------------------------------------------------------------------------

    async def score(self, nodes: Sequence[Node]) -> None:
        """Ask the scorer about those nodes that have no score."""
        new = [node for node in nodes if node.score is None]
        for node, score in zip(new, await self.scorer.score(self, new), strict=True):
            node.score = min(1.0, max(0.0, score))

    async def read(self, nodes: Sequence[Node], *, top: int = 0, model: int = 0) -> list[tuple[TokenLogprobs, ...]]:
        """Log-probabilities of whole solutions behind the question, under a model that need not have written them: one
        pass over each. top: those of so many of the likeliest tokens, too. Empty where the budget is spent."""
        first = len(await self._question(model))
        prompts = [[*await self._question(model), *await self._tokens(node, model)] for node in nodes]
        sampling = Sampling(temperature=0, max_tokens=1, prompt_logprobs=top)
        results = await together([self.requests.run(ids, sampling, model) for ids in prompts])
        return [one.prompt_logprobs[first - 1 :] if one is not None else () for one in results]

    async def next_tokens(self, nodes: Sequence[Node], suffix: str, *, top: int = 20) -> list[TokenLogprobs | None]:
        """What the model of each node would write first behind its solution and `suffix`. None where the budget is
        spent."""
        prompts = [(await self._joined([node], suffix, node.model, None), node.model) for node in nodes]
        sampling = Sampling(temperature=0, max_tokens=1, logprobs=top)
        results = await together([self.requests.run(ids, sampling, model) for ids, model in prompts])
        return [one.logprobs[0] if one is not None else None for one in results]

    async def _question(self, model: int) -> Sequence[int]:
        if model not in self._questions:
            self._questions[model] = await self.models[model].question(self.question)
        return self._questions[model]

    def _root(self, model: int, prompt: Sequence[int], sources: tuple[Node, ...] = ()) -> Node:
        root = Node(path=(len(self.roots),), prompt=tuple(prompt), model=model, sources=sources, ending="end")
        self.roots.append(root)
        return root

    async def _joined(self, nodes: Sequence[Node], suffix: str, model: int, quote: int | None) -> list[int]:
        if not self.requests.budget.has_time:
            return []  # nothing will be written behind it
        texts = [await self._tokens(node, model) for node in nodes]
        texts = [text if quote is None else text[-quote:] for text in texts]
        return await self.models[model].joined(self.question, await self._question(model), texts, suffix)

    async def _tokens(self, node: Node, model: int) -> Sequence[int]:
        """Of its solution, for one of the models."""
        return node.written if node.model == model else await self.models[model].encode(node.solution)

    async def _write(self, node: Node, how: How) -> Node:
        steps = tuple(how.get("stop", ()))
        room = self.models[node.model].context - len(node.prompt)
        wanted = min(how.get("max_tokens", self.max_tokens), room)
        noise = hashlib.blake2b(f"{self.seed}/{node.name}".encode(), digest_size=8)
        sampling = replace(
            self._sampling,
            max_tokens=max(1, wanted),
            stop=(*self._sampling.stops, *steps),
            logprobs=how.get("logprobs"),
            seed=int.from_bytes(noise.digest()),
        )

        def read(chunk: Chunk) -> None:
            node.token_ids += chunk.token_ids
            node.logprobs += chunk.logprobs
            self._watch(self)

        if room < 1 and node.written:
            node.ending = "length"
            return node
        result = None
        try:
            # a question that leaves no room is refused by the engine, which says so
            result = await self.requests.run(node.prompt, sampling, node.model, read)
        finally:
            self._end(node, result, steps, wanted)
        return node

    def _end(self, node: Node, result: Result | None, steps: Sequence[str], wanted: int) -> None:
        """It is written, or cut."""
        decode, before, node.ending = self.models[node.model].decode, node.solution, "cut"
        node.solution = decode(node.written)
        is_clean = node.solution.startswith(before)  # not where the parent ended in the middle of a character
        node.text = node.solution.removeprefix(before) if is_clean else decode(node.token_ids)
        if result is not None:
            node.cached = result.usage.cached_tokens
            if result.finish_reason == "length":
                node.ending = "length" if len(node.token_ids) == wanted else "cut"
            else:
                node.ending = "step" if result.stop_string in steps else "end"
        if node.ending == "end" or (node.ending == "length" and not steps):
            node.answer = self.extract(node.solution)
