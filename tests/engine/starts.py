"""What the tests of starts share: an `LLM` over a cache of its own, its answers, and processes that run `stretto`."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto import LLM, Sampling
from stretto.core.env import Env
from stretto.core.settings import Settings
from stretto.runner.kept import KeptModel

TEXTS = ["abcabcabcabc", "The quick brown fox", "z" * 40]


def start(folder: Path, env: Env, **settings: Any) -> LLM:
    return LLM(folder, Settings(backend="native"), env=env, note=lambda line: None, **settings)


def is_warm(llm: LLM) -> bool:
    return isinstance(llm.engine.runner.model, KeptModel)


def answers(llm: LLM, sampling: Sampling) -> list[object]:
    sampling = replace(sampling, max_tokens=24, seed=3)
    results = [*llm.generate(TEXTS, sampling), llm.chat([{"role": "user", "content": "abcabc"}], sampling)]
    return [(r.text, r.token_ids, r.logprobs, r.finish_reason, r.approximate) for r in results]


SCRIPT = """
import sys
from stretto import LLM, Sampling
from stretto.cli import main
for words in {calls!r}:
    code = main(["run", {model!r}, "--no-stdin", "--backend", "native", "-n", "8", *words])
    assert code == 0, words
if len({calls!r}) > 1:
    llm = LLM({model!r}, backend="native", draft="suffix")
    llm.chat([{{"role": "user", "content": "abcabc"}}], Sampling(max_tokens=8, temperature=0.5))
    how = Sampling(max_tokens=8, logprobs=3, frequency_penalty=0.2, logit_bias={{65: 1.0}}, min_tokens=4)
    llm.generate(["abcabc", "xyz", "q"], how)
    list(llm.stream("abcabc", Sampling(max_tokens=40, temperature=0)))
found = [name for name in ("torch", "numpy", "transformers", "scipy", "gguf", "safetensors") if name in sys.modules]
print()
print(len(sys.modules), *found)
"""
CALLS = [
    ["abcabc", "--temp", "0"],
    ["--raw", "abcabc", "--temp", "0.8", "--top-p", "0.9", "--seed", "1"],
    ["abcabc", "--temp", "0.8", "--presence-penalty", "0.5", "--repeat-penalty", "1.2"],
    ["abcabc", "--draft", "ngram:nodes=4", "--show-draft"],
    ["abcabc", "--draft", "suffix"],
    ["abcabc", "--stats"],
]


def process(folder: Path, env: Env, *calls: list[str]) -> "subprocess.Popen[str]":
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRETTO_")} | {"STRETTO_CACHE": str(env.cache)}
    script = SCRIPT.format(calls=list(calls), model=str(folder))
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
