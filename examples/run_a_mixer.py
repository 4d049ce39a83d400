"""The mixer of add_a_mixer.py in an engine: on the native kernels, with drafts that are verified and rolled back.

python examples/run_a_mixer.py
"""

import torch
from add_a_mixer import Retention

from stretto import Sampling
from stretto.channels.dense import Dense
from stretto.convert.load import tile_model
from stretto.core.env import read_env
from stretto.drafters.jacobi import Jacobi
from stretto.engine.abilities import where_parts_run
from stretto.engine.engine import Engine
from stretto.engine.policies.draft.always import Always
from stretto.engine.scheduler import Policies
from stretto.llm.backend import thread_team
from stretto.models.lm import Layer, LMConfig
from stretto.runner.runner import Sizes


def main() -> None:
    torch.manual_seed(0)
    layer = Layer(mixer=Retention.Config(d_model=32, num_heads=4), channel=Dense.Config(d_model=32, d_hidden=64))
    lm = LMConfig(
        family="toy", d_model=32, vocab_size=50, layers=(layer, layer), norm_eps=1e-5, context=64, tie_embeddings=True
    ).build()
    threads, texts = thread_team(read_env(), None), []
    tile_model(lm.eval().requires_grad_(False), threads)
    for num_tokens in (0, 8):
        drafter = Jacobi() if num_tokens else None
        policies = Policies(draft=Always(num_tokens) if num_tokens else None)
        engine = Engine(lm, Sizes(context=64), drafter=drafter, policies=policies, threads=threads)
        request = engine.add(list(range(20)), Sampling(temperature=0, max_tokens=24).resolve())
        steps = 0
        while not engine.is_idle:
            engine.step()
            steps += 1
        texts.append(request.output)
        print(f"{num_tokens} draft tokens a step: {len(request.output)} tokens in {steps} steps")
    print("same text:", texts[0] == texts[1])
    print("where it runs:", where_parts_run(lm, engine.runner.host_operations))


if __name__ == "__main__":
    main()
