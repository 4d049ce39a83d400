"""stretto, through its public Python API. options: {"draft": ..., "prefill": "exact" if absent}."""

import sys
import time
from typing import Any

from _serve import Emit, Ids, serve


class Stretto:
    """`LLM` with `draft` from the options; the first token is timed through `stream`."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        import stretto
        from stretto import LLM, Sampling

        self.sampling = Sampling
        self.llm = LLM(
            model,
            draft=options["draft"],
            prefill=options.get("prefill", "exact"),
            max_seqs=options["streams"],
            context=options["context"],
            threads=threads,
            prefix_cache="none",  # prompts repeat, and are to be read each time
        )
        choice = self.llm.backend_choice
        settings = self.llm.settings.as_dict() | {"backend": choice.name, "why_not_native": choice.why}
        settings["imports"] = {"modules": len(sys.modules), "torch": "torch" in sys.modules}
        return {"version": f"stretto {stretto.__version__}, {choice.name}", "settings": settings}

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        sampling = self.sampling(temperature=0.0, ignore_eos=True, max_tokens=new)
        if len(prompts) > 1:
            return [list(result.token_ids) for result in self.llm.generate(prompts, sampling)]
        tokens: Ids = []
        for chunk in self.llm.stream(prompts[0], sampling):
            if chunk.token_ids and not tokens:
                emit()
            tokens += chunk.token_ids
        return [tokens]

    def rows(self, ids: Ids, rows: int, repeat: int) -> list[float]:
        """Steps of the text said again, with drafts as long as they may be (`rows` less the pending row)."""
        tape, found = self.llm.engine.runner.recording.operations, []
        run = tape.run

        def timed() -> None:
            started = time.perf_counter()
            run()
            if tape.step.num_rows == rows:
                found.append(time.perf_counter() - started)

        tape.run = timed
        try:
            for _ in range(repeat):
                self.generate([ids], 96, lambda at=None: None)
                if len(found) >= repeat:
                    break
        finally:
            del tape.run
        return found


if __name__ == "__main__":
    sys.exit(serve(Stretto))
