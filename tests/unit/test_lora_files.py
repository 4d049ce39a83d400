"""Adapters from files: of every family, in both formats, against the same weights merged by transformers' modules."""

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import IDS, Checkpoints, close, tiny
from loras import Terms, linears, merged_logits, numbers, random_terms, theirs_of, write_peft
from safetensors.torch import save_file
from torch import Tensor

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.lora import read_lora
from stretto.convert.model_file import ModelFile, families, open_model
from stretto.core.errors import ModelFileError, UserError
from stretto.core.plan import StepPlan
from stretto.core.seqs import LORA, Seqs
from stretto.models.lora import make_room

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = [family.name for family in families() if family.inside is None]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def logits_with(file: ModelFile, adapter: Path) -> Tensor:
    """Of `IDS`, all of whose rows have the adapter."""
    lm = load_model(file)
    table = make_room(lm, 2, 8, None)
    table.write(2, read_lora(adapter, file, table))
    seqs = Seqs.of([len(IDS)], tags={LORA: [2] * len(IDS)})
    return lm(StepPlan(IDS, seqs, range(len(IDS))))  # type: ignore[no-any-return]


def shapes_of(theirs: Any) -> dict[str, tuple[int, int]]:
    return {path: tuple(module.weight.shape) for path, module in linears(theirs).items()}  # type: ignore[misc]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_what_merging_it_would_be(checkpoints: Checkpoints, name: str, tmp_path: Path) -> None:
    """Of a checkpoint, and of the GGUF file that it becomes, whose rows may stand in another order."""
    source, plain = checkpoints(name, tiny(name))
    theirs = theirs_of(source)
    terms = random_terms(shapes_of(theirs))
    want = merged_logits(theirs, terms, 2.0, IDS).float()
    assert (want - plain).abs().max() > 0.05 * plain.abs().max(), "the adapter changes the model"
    adapter = write_peft(tmp_path / "adapter", terms)
    close(logits_with(open_model(source), adapter), want)
    convert(source, tmp_path / "model.gguf", "gguf", "f32")
    close(logits_with(open_model(tmp_path / "model.gguf"), adapter), want)


@pytest.fixture(scope="module")
def llama(checkpoints: Checkpoints) -> tuple[Path, Any]:
    source, _ = checkpoints("llama")
    return source, theirs_of(source)


Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def some(theirs: Any, *endings: str, **how: Any) -> Terms:
    return random_terms({path: shape for path, shape in shapes_of(theirs).items() if path.endswith(endings)}, **how)


def test_ranks_and_factors_of_single_modules(llama: tuple[Path, Any], tmp_path: Path) -> None:
    source, theirs = llama
    terms = dict(some(theirs, "q_proj", "v_proj"))
    terms[V] = random_terms({V: shapes_of(theirs)[V]}, rank=5)[V]
    config = {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.v_proj": 5},
        "alpha_pattern": {"v_proj": 10, f"^{Q}": 3},
        "use_rslora": True,
    }
    first, last = math.sqrt(3), math.sqrt(5)
    scale = {path: 6 / first for path in terms}
    scale |= {Q: 3 / first, V: 10 / last, "model.layers.0.self_attn.v_proj": 10 / first}
    want = merged_logits(theirs, terms, scale, IDS).float()
    close(logits_with(open_model(source), write_peft(tmp_path, terms, **config)), want)


def test_only_some_layers(llama: tuple[Path, Any], tmp_path: Path) -> None:
    source, theirs = llama
    terms = {path: term for path, term in some(theirs, "q_proj").items() if ".1." in path}
    config = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    want = merged_logits(theirs, terms, 2.0, IDS).float()
    close(logits_with(open_model(source), write_peft(tmp_path / "one", terms, **config)), want)
    with pytest.raises(ModelFileError, match="holds"):
        logits_with(open_model(source), write_peft(tmp_path / "two", some(theirs, "q_proj"), **config))


def permuted(b: np.ndarray, num_heads: int) -> np.ndarray:
    """The order in which GGUF files of Llama have the rows of q and k, as llama.cpp's converter writes them."""
    return b.reshape(num_heads, 2, len(b) // num_heads // 2, -1).swapaxes(1, 2).reshape(b.shape)


def write_gguf(path: Path, terms: Terms, alpha: float = 6.0, **metadata: Any) -> Path:
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}
    heads = {"q_proj": 4, "k_proj": 2}
    writer = gguf.GGUFWriter(path, metadata.pop("arch", "llama"))
    for key, value in {"general.type": "adapter", "adapter.type": "lora", **metadata}.items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for theirs, (a, b) in terms.items():
        _, _, layer, _, module = theirs.split(".")
        rows = permuted(b.numpy(), heads[module]) if module in heads else b.numpy()
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight.lora_a", a.numpy())
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight.lora_b", np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alpha, scale", [(6.0, 2.0), (0.0, 1.0)])
def test_a_gguf_adapter(llama: tuple[Path, Any], tmp_path: Path, alpha: float, scale: float) -> None:
    source, theirs = llama
    terms = some(theirs, "q_proj", "k_proj", "v_proj", "down_proj")
    want = merged_logits(theirs, terms, scale, IDS).float()
    close(logits_with(open_model(source), write_gguf(tmp_path / "a.gguf", terms, alpha)), want)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "bias": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "bias of the terms": ({"lora_bias": True}, "lora_bias"),
    "whole parts": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "another method": ({"peft_type": "IA3"}, "IA3"),
    "no method": ({"peft_type": ...}, "peft_type is None"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["experts.down"]}, "target_parameters"),
    "activated": ({"alora_invocation_tokens": [1]}, "activated"),
    "changed weights": ({"init_lora_weights": "pissa"}, "pissa"),
    "no rank": ({"r": ...}, "r is None"),
    "rank 0": ({"r": 0}, "r is 0"),
    "broken rank": ({"r": 2.5}, "r is 2.5"),
    "alpha of text": ({"lora_alpha": "6"}, "lora_alpha is '6'"),
    "a regular expression": ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern"),
    "patterns of another kind": ({"rank_pattern": [3]}, "rank_pattern"),
    "another rank": ({"r": 4}, "its rank is 4"),
    "a rank of a pattern": ({"rank_pattern": {"q_proj": 2}}, "its rank is 2"),
    "another target": ({"target_modules": ["k_proj"]}, "does not name it"),
    "targets that lack": ({"target_modules": ["q_proj", "k_proj"]}, "lacks the tensors"),
    "broken targets": ({"target_modules": [3]}, "target_modules"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(llama: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    (source, theirs), (config, match) = llama, REFUSED[name]
    adapter = write_peft(tmp_path, some(theirs, "q_proj"), **config)
    with pytest.raises(ModelFileError) as problem:
        logits_with(open_model(source), adapter)
    assert match in str(problem.value)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "JSON object"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "a pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "run code",
    ),
    "cut off": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-8]),
        "safetensors",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_folders_are_errors_of_the_user(llama: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    (source, theirs), (damage, match) = llama, DAMAGED[name]
    adapter = write_peft(tmp_path, some(theirs, "q_proj"))
    damage(adapter)
    with pytest.raises(UserError) as problem:
        logits_with(open_model(source), adapter)
    assert match in str(problem.value)


BEYOND = "base_model.model."
TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "of the embedding": ({f"{BEYOND}model.embed_tokens.lora_embedding_A": torch.ones(3, 4)}, "embeddings"),
    "of the head": (
        {f"{BEYOND}lm_head.lora_A.weight": torch.ones(3, 32), f"{BEYOND}lm_head.lora_B.weight": torch.ones(64, 3)},
        "no such one",
    ),
    "whole": ({f"{BEYOND}lm_head.weight": torch.ones(64, 32)}, "whole parts"),
    "of no pair": ({f"{BEYOND}{V}.lora_A.weight": torch.ones(3, 32)}, "pairs"),
    "too narrow": (
        {f"{BEYOND}{V}.lora_A.weight": torch.ones(3, 31), f"{BEYOND}{V}.lora_B.weight": torch.ones(16, 3)},
        "does not fit",
    ),
    "too short": (
        {f"{BEYOND}{V}.lora_A.weight": torch.ones(3, 32), f"{BEYOND}{V}.lora_B.weight": torch.ones(15, 3)},
        "does not fit",
    ),
    "of three dimensions": (
        {f"{BEYOND}{V}.lora_A.weight": torch.ones(3, 32, 1), f"{BEYOND}{V}.lora_B.weight": torch.ones(16, 3)},
        "shapes",
    ),
    "not finite": (
        {f"{BEYOND}{V}.lora_A.weight": torch.full((3, 32), torch.nan), f"{BEYOND}{V}.lora_B.weight": torch.ones(16, 3)},
        "not finite",
    ),
    "of integers": (
        {f"{BEYOND}{V}.lora_A.weight": torch.ones(3, 32).int(), f"{BEYOND}{V}.lora_B.weight": torch.ones(16, 3)},
        "dtype",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(llama: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    (source, theirs), (more, match) = llama, TENSORS[name]
    with pytest.raises(ModelFileError) as problem:
        logits_with(open_model(source), write_peft(tmp_path, some(theirs, "q_proj"), more))
    assert match in str(problem.value)


def test_other_paths_and_larger_ranks(llama: tuple[Path, Any], tmp_path: Path) -> None:
    source, theirs = llama
    file = open_model(source)
    with pytest.raises(UserError, match="is no adapter"):
        logits_with(file, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no adapter_config"):
        logits_with(file, tmp_path / "empty")
    with pytest.raises(UserError, match="rank 9"):
        logits_with(file, write_peft(tmp_path / "nine", some(theirs, "q_proj", rank=9), r=9))
    with pytest.raises(ModelFileError, match="lacks the tensors"):
        logits_with(file, write_peft(tmp_path / "none", {}))
    terms = some(theirs, "q_proj")
    with pytest.raises(ModelFileError, match="made for 'qwen2'"):
        logits_with(file, write_gguf(tmp_path / "a.gguf", terms, arch="qwen2"))
    with pytest.raises(ModelFileError, match="no adapter"):
        logits_with(file, write_gguf(tmp_path / "b.gguf", terms, **{"general.type": "model"}))
    with pytest.raises(ModelFileError, match="not supported"):
        logits_with(file, write_gguf(tmp_path / "c.gguf", terms, **{"adapter.alora.invocation_tokens": "1"}))


def test_an_adapter_of_the_peft_package(llama: tuple[Path, Any], tmp_path: Path) -> None:
    """As it saved it, against the logits that its own modules computed (tests/golden/make_peft.py)."""
    golden = json.loads((GOLDEN / "peft.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(golden["config"]))
    save_file(numbers(golden["shapes"]), tmp_path / "adapter_model.safetensors")
    want = torch.frombuffer(bytearray(base64.b64decode(golden["logits"])), dtype=torch.float64).view(len(IDS), -1)
    close(logits_with(open_model(llama[0]), tmp_path), want.float())
