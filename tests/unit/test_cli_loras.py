"""Adapters on the command line."""

from pathlib import Path

import pytest
from command import Run, answer
from loras import linears, random_terms, theirs_of, write_peft

from stretto.cli._loras import read_loras
from stretto.core.errors import UserError
from stretto.core.settings import Settings

RAW = ("--raw", "--temp", "0", "-n", "8", "--ignore-eos", "--dtype", "float32", "--draft", "none")


def test_run_answers_with_an_adapter(cli: Run, tiny: Path, tmp_path: Path) -> None:
    shapes = {path: tuple(module.weight.shape) for path, module in linears(theirs_of(tiny)).items()}
    adapter = write_peft(tmp_path / "adapter", random_terms(shapes, size=0.5))  # type: ignore[arg-type]
    plain, adapted = answer(cli, tiny, "abc", *RAW), answer(cli, tiny, "abc", *RAW, "--lora", adapter)
    assert plain["token_ids"] != adapted["token_ids"]
    code, _, err = cli("run", tiny, "abc", *RAW, "--lora", tmp_path / "nothing")
    assert code == 2 and "there is no" in err


def test_what_serve_refuses_before_it_loads(tmp_path: Path) -> None:
    one = f"a={tmp_path}"
    assert read_loras([one], None, Settings(), model_names=["m"]).named == {"a": tmp_path}
    assert read_loras([one], tmp_path, Settings(max_loras=2), model_names=["m"]).folder == tmp_path
    for texts, folder, match in (
        (["a"], None, "a name and a path"),
        (["=x"], None, "a name and a path"),
        ([one, one], None, "twice"),
        ([f"m={tmp_path}"], None, "twice"),
        ([f"a={tmp_path}/nothing"], None, "there is no"),
        ([], tmp_path / "nothing", "is no folder"),
        ([one], tmp_path, "without room"),
    ):
        with pytest.raises(UserError, match=match):
            read_loras(texts, folder, Settings(max_loras=1), model_names=["m"])
