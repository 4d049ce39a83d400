"""transformers in bf16, eager, with its own KV cache: the loop of `generate` without its sampling machinery."""

import sys
from typing import Any

from _serve import Emit, Ids, serve


class Transformers:
    """Prompts that are run together must have one length: there is no padding."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.cache = torch, transformers.DynamicCache
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {
            "version": version,
            "settings": {"dtype": "bfloat16", "attention": self.model.config._attn_implementation},
        }

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        torch = self.torch
        steps = []
        with torch.inference_mode():
            cache, ids = self.cache(config=self.model.config), torch.tensor(prompts)
            for _ in range(new):
                logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                ids = logits[:, -1].argmax(-1, keepdim=True)
                if not steps:
                    ids.tolist()
                    emit()
                steps.append(ids)
            return torch.cat(steps, 1).tolist()


if __name__ == "__main__":
    sys.exit(serve(Transformers))
