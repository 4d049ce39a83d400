"""OpenVINO GenAI: reads the GGUF file itself; continuous batching without a prefix cache, one stream or many."""

import sys
from typing import Any

from _serve import Emit, Ids, serve

BLOCK = 32  # tokens of one block of the CPU's KV cache
CHUNK = 1024  # prompt tokens of one step; 256, the default, is no faster


class OpenVino:
    """`ContinuousBatchingPipeline`, stepped by hand so that the first token can be timed."""

    def load(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        import numpy
        import openvino
        import openvino_genai

        self.lib, self.numpy, self.tensor = openvino_genai, numpy, openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = options["streams"]
        scheduler.max_num_batched_tokens = CHUNK
        scheduler.num_kv_blocks = options["batch_tokens"] // BLOCK
        self.pipe = openvino_genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.num_requests = 0
        settings = {"max_num_batched_tokens": CHUNK, "num_kv_blocks": scheduler.num_kv_blocks}
        return {"version": f"openvino-genai {openvino_genai.__version__}", "settings": settings}

    def generate(self, prompts: list[Ids], new: int, emit: Emit) -> list[Ids]:
        config = self.lib.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        handles = []
        for prompt in prompts:
            ids = self.tensor(self.numpy.array([prompt], self.numpy.int64))
            handles.append(self.pipe.add_request(self.num_requests, ids, config))
            self.num_requests += 1
        waiting = True
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            if waiting and handles[0].can_read():
                waiting = False
                emit()
        tokens = []
        for handle in handles:
            row: Ids = []
            while handle.can_read():
                row += [token for output in handle.read().values() for token in output.generated_ids]
            tokens.append(row)
        return tokens


if __name__ == "__main__":
    sys.exit(serve(OpenVino))
