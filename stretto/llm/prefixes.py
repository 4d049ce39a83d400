"""`Prefixes`: what an engine has read, to files and back, so that later processes need not compute it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import stretto
from stretto.cache.transfer import Prefix, put_in, read_out
from stretto.convert.prefix_file import Identity, hash_model, read_prefix, write_prefix
from stretto.core.errors import RunError, UserError
from stretto.core.sampling import Sampling
from stretto.llm.results import Stream
from stretto.llm.streams import Streams
from stretto.llm.submission import Prompt


class Prefixes:
    """The prefixes of the engine of `streams`. model: where its files are; dtype: the setting, where torch computes.

    `save`, `load`, `take` and `leave` touch the engine, so only its owner may call them; the others do not.
    """

    def __init__(self, streams: Streams, encode: Callable[[Prompt], list[int]], model: Path, dtype: str) -> None:
        self._streams, self._encode, self._model, self._dtype = streams, encode, model, dtype
        self._engine = streams.engine

    def save(self, prompt: Prompt, path: str | Path) -> int:
        """Read a prompt, and write what texts that begin with it need not compute to a file. Of how many tokens."""
        self.check()
        ids = self._encode(prompt)
        self._streams.results([Stream(self._engine.add(ids, self.sampling.resolve()))])
        prefix = self.take(ids)
        self.write(prefix, Path(path))
        return len(prefix.tokens)

    def load(self, path: str | Path) -> int:
        """Put the prefix of a file into the cache. Of how many tokens. Raises UserError for a file that is damaged or
        of another model or other settings, FitError if there is no room beside what runs."""
        prefix = self.read(Path(path))
        self.leave(prefix)
        return len(prefix.tokens)

    def check(self) -> None:
        """Raises UserError where texts leave nothing."""
        if self._engine.runner.cache.ledger.prefixes is None:
            why = "--prefix-cache is none, or the model or its drafter cannot go on from what others computed"
            raise UserError("this engine keeps no prefixes", why=why, try_="--prefix-cache 512MiB, or another drafter")

    @property
    def sampling(self) -> Sampling:
        """How a prompt is read whose prefix is wanted, and nothing more."""
        return Sampling(temperature=0, max_tokens=1)

    def take(self, ids: Sequence[int], space: str = "") -> Prefix:
        """What the cache has of a text that was read. Raises UserError if there is nothing."""
        self.check()
        cache = self._engine.runner.cache
        found = read_out(cache.ledger, cache.pools, ids, space)
        if found is None:
            why = "it is too short to be gone on from, or prefixes have too little memory"
            raise UserError(f"nothing is kept of a text of {len(ids):,} tokens", why=why, try_="--prefix-cache SIZE")
        return found

    def leave(self, prefix: Prefix, space: str = "") -> None:
        """Put a prefix into the cache. Raises FitError if there is no room beside what runs."""
        self.check()
        cache = self._engine.runner.cache
        put_in(cache.ledger, cache.pools, prefix, space)

    def write(self, prefix: Prefix, path: Path) -> None:
        """A file of it. Raises RunError."""
        write_prefix(path, prefix, self._engine.runner.cache.pools.layout, self._identity)

    def read(self, path: Path) -> Prefix:
        """The prefix of a file. Raises UserError, naming what differs, if it is of another model or other settings."""
        self.check()
        runner = self._engine.runner
        sizes = {"context": runner.sizes.context, "vocab_size": runner.vocab_size}
        return read_prefix(path, runner.cache.pools.layout, self._identity, **sizes)

    @cached_property
    def _identity(self) -> Identity:
        runner = self._engine.runner
        how = f"torch {self._dtype}" if runner.recording is None else "native"
        how += ", prompts in 8 bits" if runner.sizes.coarse_prompts else ""
        arithmetic = f"{how}, stretto {stretto.__version__}"
        try:
            model = hash_model(self._model)
        except OSError as problem:
            why = f"{self._model}: {problem.strerror}"
            raise RunError("the model's files cannot be read any more", why=why, try_="put them back") from None
        return Identity.of(model, runner.sizes.kv, arithmetic, runner.cache.pools.layout)
