"""int8 rows in checkpoint directories: what we write as the safetensors package and numpy see it, what others write,
and every setting of `quantization_config` that we do not follow."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import BASE, IDS, Checkpoints, close, whole
from native import team
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.convert.convert import convert
from stretto.convert.load import load_model, matrix_codecs
from stretto.convert.model_file import open_model
from stretto.core.env import read_env
from stretto.core.errors import ModelFileError, UserError
from stretto.core.settings import Settings
from stretto.kernels.linear import Linear
from stretto.kernels.linear.native import NativeWeight
from stretto.llm.backend import choose

EIGHT = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "observer": None}
ANNOUNCED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": EIGHT | {"strategy": "channel", "dynamic": False, "observer": "minmax"},
            "input_activations": EIGHT | {"strategy": "token", "dynamic": True},
            "output_activations": None,
            "format": "int-quantized",
        }
    },
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.12.2",
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def quantized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """As other writers do: 255 steps from -amax to amax, all of -128..127 in use, scales in the model's dtype."""
    scales = (x.abs().amax(1, keepdim=True) / 127.5).to(dtype)
    return (x / scales.float()).round().clamp(-128, 127).to(torch.int8), scales


def written_by_others(
    source: Path, to: Path, dtype: torch.dtype = torch.bfloat16, announced: dict[str, Any] = ANNOUNCED
) -> tuple[Path, Path]:
    """The checkpoint `source` with int8 rows, and a dense one of the same numbers."""
    tensors = load_file(source / "model.safetensors")
    rows, dense = dict(tensors), dict(tensors)
    for name, x in tensors.items():
        if name.endswith("_proj.weight"):
            codes, scales = quantized(x, dtype)
            rows |= {name: codes, f"{name}_scale": scales}
            dense[name] = codes * scales.float()
    config = json.loads((source / "config.json").read_text())
    for name, held, extra in (("rows", rows, {"quantization_config": announced}), ("dense", dense, {})):
        (to / name).mkdir(parents=True)
        save_file(held, to / name / "model.safetensors")
        (to / name / "config.json").write_text(json.dumps(config | extra))
    return to / "rows", to / "dense"


# What we write --------------------------------------------------------------------------------------------------------


def test_numpy_reads_what_we_write(saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved("llama")
    report = convert(source, tmp_path / "d", "hf", "int8")
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "d"))
    matrices = {name for name in before if name.endswith("_proj.weight")}
    assert after.keys() == before.keys() | {f"{name}_scale" for name in matrices} and len(matrices) == 14
    for name, x in before.items():
        if name not in matrices:
            assert torch.equal(after[name], x), name
            continue
        codes, scales, x = after[name].numpy(), after[f"{name}_scale"].numpy(), x.numpy()
        assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (len(x), 1)
        np.testing.assert_array_equal(scales, np.abs(x).max(1, keepdims=True) / np.float32(127))
        np.testing.assert_array_equal(codes, np.rint(x / scales))
    assert set(report.kept) == {"model.embed_tokens.weight", "lm_head.weight"}
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    said = config["quantization_config"]
    (group,) = said["config_groups"].values()
    assert (said["quant_method"], said["format"]) == ("compressed-tensors", "int-quantized")
    assert said["ignore"] == ["lm_head"] and config["dtype"] == "float32"
    asked = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    assert asked.items() <= group["weights"].items() and group["targets"] == ["Linear"]
    assert group["format"] == "int-quantized" and group["input_activations"] is None


@pytest.mark.parametrize("name", ["llama-tied-biased", "qwen3", "mamba2", "hybrid-nope"])
def test_every_family_is_the_dense_model_of_its_rows(name: str, saved: Checkpoints, tmp_path: Path) -> None:
    source, _ = saved(name)
    convert(source, tmp_path / "rows", "hf", "int8")
    convert(tmp_path / "rows", tmp_path / "dense", "hf", "f32")
    convert(tmp_path / "rows", tmp_path / "dense.gguf", "gguf")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")(torch.tensor([IDS]), use_cache=False)
    for path in (tmp_path / "rows", tmp_path / "dense", tmp_path / "dense.gguf"):
        close(whole(load_model(open_model(path))), theirs.logits[0])


def test_rows_stay_what_they_are(saved: Checkpoints, tmp_path: Path) -> None:
    """From a directory to a directory: integers and scales, also those of other writers."""
    rows, _ = written_by_others(saved("llama")[0], tmp_path, torch.float32)
    for dtype in (None, "int8"):
        convert(rows, tmp_path / str(dtype), "hf", dtype)
        before, after = (load_file(path / "model.safetensors") for path in (rows, tmp_path / str(dtype)))
        assert before.keys() == after.keys() and all(torch.equal(after[name], x) for name, x in before.items())


def test_quantized_files_become_rows(saved: Checkpoints, tmp_path: Path) -> None:
    convert(saved("qwen2")[0], tmp_path / "m.gguf", "gguf", "q8_0")
    report = convert(tmp_path / "m.gguf", tmp_path / "d", "hf", "int8")
    assert set(report.codecs) == {"int8", "bf16", "f32"} and report.kept["lm_head.weight"].startswith("bf16")
    convert(tmp_path / "m.gguf", tmp_path / "dense", "hf")
    want = whole(load_model(open_model(tmp_path / "dense")))
    close(whole(load_model(open_model(tmp_path / "d"))), want, tolerance=0.05)


def test_gguf_cannot_hold_rows(saved: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GGUF has no type for int8") as problem:
        convert(saved("llama")[0], tmp_path / "m.gguf", "gguf", "int8")
    assert "q8_0" in str(problem.value.try_)


# What others write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_of_others_are_read_exactly(dtype: torch.dtype, saved: Checkpoints, tmp_path: Path) -> None:
    rows, dense = written_by_others(saved("llama")[0], tmp_path, dtype)
    ours, theirs = load_model(open_model(rows)), load_model(open_model(dense))
    for (name, got), (_, want) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(got, want), name


def test_scales_may_lie_in_another_shard(saved: Checkpoints, tmp_path: Path) -> None:
    rows, dense = written_by_others(saved("llama")[0], tmp_path)
    tensors = load_file(rows / "model.safetensors")
    (rows / "model.safetensors").unlink()
    files = {name: f"{int(name.endswith('_scale'))}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, rows / file)
    (rows / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    close(whole(load_model(open_model(rows))), whole(load_model(open_model(dense))))


def test_rows_run_natively_in_their_own_integers(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **BASE | {"hidden_size": 64, "intermediate_size": 96})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    rows, dense = written_by_others(tmp_path / "m", tmp_path)
    model = open_model(rows)
    assert matrix_codecs(model) == {"int8", "f32"}
    plain = dict(load_model(open_model(dense)).named_modules())
    found = 0
    for name, module in load_model(model, team=team()).named_modules():
        if isinstance(module, Linear):
            assert isinstance(module.layout, NativeWeight)
            codecs, want = {part.codec.name for part in module.layout.parts}, plain[name]
            assert isinstance(want, Linear) and codecs == ({"f32"} if name in ("embed", "head") else {"int8"})
            found += "int8" in codecs
    assert found == 8


def test_rows_of_odd_width_run_through_torch(saved: Checkpoints, tmp_path: Path) -> None:
    rows, _ = written_by_others(saved("llama")[0], tmp_path)  # mlp.down_proj has 48 inputs
    model = open_model(rows)
    choice = choose(Settings(), matrix_codecs(model), read_env())
    assert choice.threads is None and choice.why == "no native layout for int8 in rows of 48 values"


# What is refused ------------------------------------------------------------------------------------------------------

WEIGHTS, INPUTS = ("config_groups", "group_0", "weights"), ("config_groups", "group_0", "input_activations")
REFUSED: dict[str, tuple[tuple[str, ...], Any]] = {
    "format": (("format",), "pack-quantized"),
    "status": (("quantization_status",), "frozen"),
    "cache": (("kv_cache_scheme",), EIGHT),
    "sparse": (("sparsity_config", "format"), "sparse-24-bitmask"),
    "rotated": (("transform_config",), {"config_groups": {"R1": {}}}),
    "no groups": (("config_groups",), {}),
    "no weights": (("config_groups", "group_0", "weights"), None),
    "format of a group": (("config_groups", "group_0", "format"), "float-quantized"),
    "outputs": (("config_groups", "group_0", "output_activations"), EIGHT),
    "bits": ((*WEIGHTS, "num_bits"), 4),
    "floats": ((*WEIGHTS, "type"), "float"),
    "asymmetric": ((*WEIGHTS, "symmetric"), False),
    "groups": ((*WEIGHTS, "strategy"), "group"),
    "one scale": ((*WEIGHTS, "strategy"), "tensor"),
    "dynamic": ((*WEIGHTS, "dynamic"), True),
    "order": ((*WEIGHTS, "actorder"), "group"),
    "static inputs": ((*INPUTS, "dynamic"), False),
    "inputs of 4 bits": ((*INPUTS, "num_bits"), 4),
    "asymmetric inputs": ((*INPUTS, "symmetric"), False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_are_refused_by_name(case: str, saved: Checkpoints, tmp_path: Path) -> None:
    where, value = REFUSED[case]
    announced = copy.deepcopy(ANNOUNCED)
    inside = announced
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    rows, _ = written_by_others(saved("llama")[0], tmp_path, announced=announced)
    at = ".".join(where) + (".num_bits" if where[-1] == "weights" else "")
    with pytest.raises(ModelFileError, match=rf"quantization_config\.{at} is"):
        open_model(rows)


def test_weights_alone_may_be_rounded(saved: Checkpoints, tmp_path: Path) -> None:
    announced = copy.deepcopy(ANNOUNCED)
    announced["config_groups"]["group_0"] |= {"input_activations": None}
    open_model(written_by_others(saved("llama")[0], tmp_path, announced=announced)[0])


@pytest.mark.parametrize("change", ["none", "wrong", "wide", "not finite", "flat"])
def test_damaged_scales_are_named(change: str, saved: Checkpoints, tmp_path: Path) -> None:
    rows, _ = written_by_others(saved("llama")[0], tmp_path)
    tensors, name = load_file(rows / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    scales = tensors.pop(f"{name}_scale")
    wide = {"wide": scales.repeat(1, 2), "wrong": scales.to(torch.int16), "flat": scales[:, 0]}
    tensors |= {f"{name}_scale": wide.get(change, scales)} if change != "none" else {}
    if change == "not finite":
        tensors[f"{name}_scale"][7] = torch.nan
    save_file(tensors, rows / "model.safetensors")
    if change == "flat":  # one number for every row all the same
        load_model(open_model(rows))
        return
    with pytest.raises(ModelFileError, match=rf"'{name}.* row 7" if change == "not finite" else f"'{name}"):
        load_model(open_model(rows))
