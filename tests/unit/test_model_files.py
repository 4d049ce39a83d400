"""What a path is, by its contents: tied heads in every spelling, split models, names without endings, neighbours."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import IDS, SPECS, Checkpoints, close, whole
from gguf_files import rewritten
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import open_model
from stretto.convert.show import describe
from stretto.core.errors import ModelFileError, UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "mamba2", "hybrid-nope", "qwen3_5")
HEAD = "lm_head.weight"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def gguf_file(saved: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    convert(saved("llama")[0], path, "gguf", "f32")
    return path


def tied(name: str) -> Any:
    """A random tied model of transformers."""
    torch.manual_seed(len(name))
    spec: dict[str, Any] = {**SPECS[name], "tie_word_embeddings": True}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(spec.pop("model_type"), **spec)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS]), use_cache=False).logits[0]  # type: ignore[no-any-return]


def embedding_of(path: Path) -> str:
    return next(name for name in load_file(path) if "embed" in name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tied_model_may_hold_its_matrix_under_either_name_or_both(
    name: str, saved: Checkpoints, tmp_path: Path
) -> None:
    model = tied(name)
    want = logits(model)
    model.save_pretrained(tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    embedding = embedding_of(tmp_path / "plain" / "model.safetensors")
    assert HEAD not in tensors
    both = {**tensors, HEAD: tensors[embedding].clone()}
    only_head = {HEAD if key == embedding else key: value for key, value in tensors.items()}
    for kind, content in {"both": both, "head": only_head}.items():
        shutil.copytree(tmp_path / "plain", tmp_path / kind)
        save_file(content, tmp_path / kind / "model.safetensors", {"format": "pt"})
    shutil.copytree(tmp_path / "plain", tmp_path / "alias")
    save_model(model, str(tmp_path / "alias" / "model.safetensors"))
    for kind in ("plain", "both", "head", "alias"):
        opened = open_model(tmp_path / kind)
        assert opened.config.tie_embeddings and not opened.notes
        assert describe(opened)["tied_head"] is True
        close(whole(load_model(opened)), want)
        for to, target in (("hf", tmp_path / f"{kind}-copy"), ("gguf", tmp_path / f"{kind}.gguf")):
            convert(tmp_path / kind, target, to, "f32")  # type: ignore[arg-type]
            copy = open_model(target)
            assert copy.config.tie_embeddings
            close(whole(load_model(copy)), want)
        close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / f"{kind}-copy").eval()), want)


def test_two_tensors_in_other_dtypes_are_compared_by_their_values(tmp_path: Path) -> None:
    model = tied("llama").bfloat16()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[HEAD] = tensors["model.embed_tokens.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert open_model(tmp_path).config.tie_embeddings


@pytest.mark.parametrize("name", FAMILIES)
def test_another_head_beside_a_tied_config_counts_and_is_said(name: str, tmp_path: Path) -> None:
    tied(name).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors[HEAD] = tensors[embedding_of(file)].flip(0) + 0.5
    save_file(tensors, file, {"format": "pt"})
    want = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval())
    opened = open_model(tmp_path / "m")
    assert not opened.config.tie_embeddings
    assert len(opened.notes) == 1 and HEAD in opened.notes[0]
    close(whole(load_model(opened)), want)
    for to, target in (("hf", tmp_path / "copy"), ("gguf", tmp_path / "copy.gguf")):
        report = convert(tmp_path / "m", target, to, "f32")  # type: ignore[arg-type]
        assert any(HEAD in note for note in report.notes)
        copy = open_model(target)
        assert not copy.config.tie_embeddings and not copy.notes
        close(whole(load_model(copy)), want)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["tie_word_embeddings"] is False


def test_biases_that_the_config_denies_must_be_zero(saved: Checkpoints, tmp_path: Path) -> None:
    path, want = saved("llama")
    bias = "model.layers.1.self_attn.q_proj.bias"
    for value in (0.0, 0.25):
        shutil.copytree(path, tmp_path / str(value))
        tensors = {**load_file(path / "model.safetensors"), bias: torch.full((32,), value)}
        save_file(tensors, tmp_path / str(value) / "model.safetensors", {"format": "pt"})
    close(whole(load_model(open_model(tmp_path / "0.0"))), want)
    with pytest.raises(ModelFileError, match=r"does not use[\s\S]*q_proj\.bias"):
        load_model(open_model(tmp_path / "0.25"))


# Names and directories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256-0123abcd", "model.GGUF", "model.bin"])
def test_the_first_bytes_say_that_a_file_is_gguf(
    name: str, gguf_file: Path, saved: Checkpoints, tmp_path: Path
) -> None:
    shutil.copy(gguf_file, tmp_path / name)
    opened = open_model(tmp_path / name)
    assert opened.is_gguf
    close(whole(load_model(opened)), saved("llama")[1])


def test_a_directory_with_one_gguf_model_is_that_model(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words")
    shutil.copy(gguf_file, tmp_path / "a.GGUF")
    assert open_model(tmp_path).path == tmp_path / "a.GGUF"
    shutil.copy(gguf_file, tmp_path / "b.gguf")
    with pytest.raises(ModelFileError, match="2 GGUF models"):
        open_model(tmp_path)


OTHERS = {
    "old.bin": (b"tjgg\x03\x00\x00\x00", "before GGUF"),
    "model.pt": (b"PK\x03\x04....", "torch.save"),
    "part.safetensors": (b"\x10\0\0\0\0\0\0\0{}", "config.json beside it"),
    "notes.txt": (b"hello", "neither"),
    "empty": (b"", "neither"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_by_what_they_are(name: str, tmp_path: Path) -> None:
    content, word = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=word):
        open_model(tmp_path / name)


NEIGHBOURS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], str]] = {
    "adapter": ({"general.type": "adapter", "adapter.type": "lora"}, {}, "LoRA"),
    "old adapter": ({"general.type": None}, {"blk.0.attn_q.weight.lora_a": np.zeros((2, 32), np.float32)}, "LoRA"),
    "projector": ({"general.type": "mmproj", "general.architecture": "clip"}, {}, "projector"),
    "old projector": ({"general.type": None, "general.architecture": "clip"}, {}, "projector"),
    "importance": ({"general.type": "imatrix"}, {}, "importance matrix"),
    "something new": ({"general.type": "dream"}, {}, "dream"),
}


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_what_lies_beside_models_says_what_it_is(case: str, gguf_file: Path, tmp_path: Path) -> None:
    changes, tensors, word = NEIGHBOURS[case]
    with pytest.raises(ModelFileError, match=word):
        open_model(rewritten(gguf_file, tmp_path / "m.gguf", changes, tensors=tensors))


def test_a_folder_with_an_adapter_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="LoRA"):
        open_model(tmp_path)


# Split models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(gguf_file: Path, tmp_path: Path) -> list[Path]:
    """A model in parts of seven tensors, as the gguf package cuts it."""
    rewritten(gguf_file, tmp_path / "model.gguf", parts_of=7)
    found = sorted(tmp_path.glob("model-*.gguf"))
    assert len(found) == 3
    return found


def test_a_split_model_runs_from_its_first_part(parts: list[Path], saved: Checkpoints, tmp_path: Path) -> None:
    opened = open_model(parts[0])
    close(whole(load_model(opened)), saved("llama")[1])
    assert not [key for key in opened.metadata if key.startswith("split.")]
    assert open_model(tmp_path).path == parts[0]
    convert(parts[0], tmp_path / "whole.gguf", "gguf")
    close(whole(load_model(open_model(tmp_path / "whole.gguf"))), saved("llama")[1])


def test_a_later_part_names_the_first(parts: list[Path]) -> None:
    for number, part in enumerate(parts[1:], start=2):
        with pytest.raises(ModelFileError, match=rf"part {number} of 3[\s\S]*{parts[0].name}"):
            open_model(part)


def test_missing_parts_are_named(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(ModelFileError, match=rf"1 are missing[\s\S]*{parts[2].name}"):
        open_model(parts[0])


def test_a_first_part_of_another_name_says_how_parts_are_called(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(ModelFileError, match="-00001-of-00003"):
        open_model(renamed)


def test_parts_that_lack_a_tensor_are_refused(parts: list[Path], tmp_path: Path) -> None:
    last = parts[2].rename(tmp_path / "last")
    rewritten(last, parts[2], drop=("output_norm.weight",))
    with pytest.raises(ModelFileError, match=r"20 tensors, not 21"):
        open_model(parts[0])


def test_parts_of_different_models_are_refused(parts: list[Path], gguf_file: Path) -> None:
    good = parts[1].read_bytes()
    shutil.copy(parts[2], parts[1])
    with pytest.raises(ModelFileError, match="part 2 of 3"):
        open_model(parts[0])
    shutil.copy(gguf_file, parts[1])
    with pytest.raises(ModelFileError, match="part 2 of 3"):
        open_model(parts[0])
    parts[1].write_bytes(good)
    split = {"split.no": 2, "split.count": 3, "split.tensors.count": 21}
    rewritten(gguf_file, parts[2], split)
    with pytest.raises(ModelFileError, match="which"):  # the same tensors once more
        open_model(parts[0])


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        open_model(tmp_path / "pipe")
