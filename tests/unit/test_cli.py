"""The command line, in-process where possible: help, bad input, every verb. Bad input never shows a traceback."""

import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import CONFIG, Run, answer
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_lm

from stretto import cli as cli_package
from stretto.cli import VERBS, _flags, _terminal, help_text
from stretto.cli import bench as bench_verb
from stretto.core.env import read_env
from stretto.core.errors import UserError
from stretto.core.option import argument, option, options_of
from stretto.engine.abilities import where_parts_run
from stretto.hub.aliases import aliases, place
from stretto.kernels.native.build import LEVELS

# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(cli: Run, verb: str) -> None:
    code, out, err = cli(verb, "--help")
    assert (code, err) == (0, "") and out == help_text(verb) and cli(verb, "-h")[1] == out
    assert out.startswith(f"usage: stretto {verb} ") and VERBS[verb] in out
    options = cli_package._verb(verb).Options
    of_groups = [one for group in _flags.groups_of(options).values() for one in group.options]
    for one in (*options_of(options), *of_groups):
        assert f" {one.name}" in out.replace("[", " ") and one.help.split()[0] in out
    assert "--json" in out and max(map(len, out.splitlines())) <= 120


def test_help_of_the_command(cli: Run) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        code, out, err = cli(*words)
        assert (code, err) == (0, "") and all(f"  {verb} " in out for verb in VERBS)
    assert cli("help", "run")[1] == help_text("run")
    assert cli() == (2, "", help_text(None)), "without a verb the help goes to standard error"
    assert cli("--version")[1].startswith("stretto 0.")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["bench", "-h"], ["doctor", "--help"], ["rum"]])
def test_neither_torch_nor_numpy_before_they_are_needed(words: list[str]) -> None:
    probe = (
        "import sys; from stretto.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'numpy', 'rich', 'tokenizers') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["--temp", "nan"],
        ["--top-p", "2"],
        ["--draft", "ngrem"],
        ["--judge", "copled"],
        ["--dtype", "f32"],
        ["--draft", "ngram:max_n=0"],
        ["--order", "fcsf"],
        ["--ctx", "1"],
        ["--mem", "lots"],
        ["--chat-template", "no.jinja"],
        ["--sed", "1"],
    ],
)
def test_wrong_settings_are_refused_before_torch_is_imported(words: list[str]) -> None:
    probe = "import sys; from stretto.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", probe, "run", "no-such-model", "hi", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n", done.stderr


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_an_answer_does_not_need_torchs_compiler(tiny: Path, backend: str) -> None:
    """Importing it takes a second, and several of torch's conveniences do so on their first use."""
    probe = (
        "import sys; from stretto.cli import main; code = main(sys.argv[1:]);"
        "print(code, [m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])"
    )
    words = ["run", str(tiny), "hi", "--raw", "-n", "2", "--json", "--no-stdin", "--backend", backend]
    command = [sys.executable, "-c", probe, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout


# -- bad input ---------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Sequence[str], int, str]] = {
    "verb": (["rum"], 2, "did you mean run?"),
    "flag for verb": (["--jason"], 2, "unknown flag '--jason'"),
    "flag": (["run", "TINY", "hi", "--tempp", "1"], 2, "did you mean --temp"),
    "abbreviated flag": (["run", "TINY", "hi", "--max", "1"], 2, "unknown flag --max"),
    "model": (["run", "smolm2", "hi"], 2, "did you mean smollm2?"),
    "missing file": (["show", "./no/such/file.gguf"], 2, "no such file"),
    "no model": (["run"], 2, "MODEL is missing"),
    "too many": (["pull", "smollm2", "smollm3"], 2, "unexpected argument 'smollm3'"),
    "no value": (["run", "TINY", "hi", "--seed"], 2, "--seed needs a value"),
    "switch with value": (["run", "TINY", "hi", "--raw=1"], 2, "--raw takes no value"),
    "not a number": (["run", "TINY", "hi", "--top-k", "many"], 2, "--top-k is 'many'"),
    "temperature nan": (["run", "TINY", "hi", "--temp", "nan"], 2, "--temp is nan"),
    "temperature below": (["run", "TINY", "hi", "--temp=-1"], 2, "--temp is -1"),
    "top_p": (["run", "TINY", "hi", "--top-p", "2"], 2, "--top-p is 2"),
    "seed": (["run", "TINY", "hi", "--seed", "-1"], 2, "--seed is -1"),
    "no tokens": (["run", "TINY", "hi", "-n", "0"], 2, "--max-tokens is 0"),
    "empty stop": (["run", "TINY", "hi", "--stop", ""], 2, "stop must be"),
    "dtype": (["run", "TINY", "hi", "--dtype", "bfloat32"], 2, "did you mean float32 or bfloat16?"),
    "prefill": (["run", "TINY", "hi", "--prefill", "in8"], 2, "did you mean int8?"),
    "coarse": (["run", "TINY", "hi", "--prefill", "int8", "--backend", "torch"], 2, "needs the native kernels"),
    "draft": (["run", "TINY", "hi", "--draft", "ngrm"], 2, "did you mean ngram?"),
    "draft setting": (["run", "TINY", "hi", "--draft", "ngram:nodes=0"], 2, "nodes is 0"),
    "judge": (["run", "TINY", "hi", "--judge", "copled"], 2, "did you mean coupled?"),
    "context below": (["run", "TINY", "hi", "--ctx", "1"], 2, "--ctx is 1"),
    "context above": (["run", "TINY", "hi", "--ctx", "129"], 2, "context is 129"),
    "empty prompt": (["run", "TINY", ""], 2, "the prompt is empty"),
    "only standard input, and not that": (["run", "TINY", "--no-stdin"], 2, "--no-stdin needs a prompt"),
    "standard input, and not that": (["run", "TINY", "-", "--no-stdin"], 2, "--no-stdin needs a prompt"),
    "raw with system": (["run", "TINY", "hi", "--raw", "--system", "x"], 2, "exclude each other"),
    "no template file": (["run", "TINY", "hi", "--chat-template", "no.jinja"], 2, "cannot be read"),
    "long prompt": (["run", "TINY", "hi " * 50, "--raw"], 2, "the prompt has 150 tokens; the context is 128"),
    "bytes": (["run", "TINY", "\udcff"], 2, "not UTF-8"),
    "offline pull": (["pull", "smollm2"], 1, "STRETTO_OFFLINE is set"),
    "offline run": (["run", "smollm2", "hi"], 1, "STRETTO_OFFLINE is set"),
    "socket": (["list", "drafters"], 2, "did you mean drafter?"),
    "format": (["convert", "TINY", "out.gguf", "--to", "ggml"], 2, "one of hf, gguf"),
    "no format": (["convert", "TINY", "out.gguf"], 2, "--to is missing"),
    "number format": (["convert", "TINY", "out.gguf", "--to", "gguf", "--dtype", "q8_"], 2, "did you mean q8_0"),
    "streams": (["bench", "TINY", "--streams", "1,0"], 2, "--streams"),
    "record": (["bench", "TINY", "--record", "no/such/folder/r.json"], 2, "no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_three_lines_and_its_exit_code(cli: Run, tiny: Path, case: str) -> None:
    words, expected, text = BAD[case]
    code, out, err = cli(*(str(tiny) if word == "TINY" else word for word in words))
    assert (code, out) == (expected, ""), err
    assert text in err
    labels = [line.partition(":")[0] for line in err.splitlines()]
    assert labels == [label for label in ("error", "why", "try") if label in labels] and labels[0] == "error"


def test_damaged_model_files_exit_3(cli: Run, tiny: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    assert cli("convert", tiny, whole, "--to", "gguf")[0] == 0
    data = whole.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 30, 1000, len(data) - 1):
        cut.write_bytes(data[:size])
        for words in (["run", cut, "hi"], ["show", cut], ["doctor", cut], ["bench", cut]):
            code, out, err = cli(*words)
            assert (code, out) == (3, "") and "error: " in err, (size, words, err)
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["LlamaForCausalLn"]}))
    code, _, err = cli("show", folder)
    assert code == 3 and "'LlamaForCausalLn' is not supported" in err


# -- other verbs -------------------------------------------------------------------------------------------------------


def test_show(cli: Run, tiny: Path) -> None:
    found = json.loads(cli("show", tiny, "--json")[1])
    assert (found["family"], found["context"], found["vocab_size"]) == ("llama", 128, 258)
    code, out, err = cli("show", tiny)
    assert (code, err) == (0, "") and "context" in out and "tied head" in out


def test_list(cli: Run) -> None:
    found = json.loads(cli("list", "--json")[1])
    assert set(found) == {
        "mixer",
        "channel",
        "codec",
        "drafter",
        "judge",
        "order",
        "victim",
        "chunk",
        "budget",
        "evict",
        "search",
        "scorer",
        "route",
        "length",
        "model",
    }
    assert "attention" in [card["name"] for card in found["mixer"]]
    assert found["model"] == [m for m in found["model"] if m["path"] is None], "the cache of the test is empty"
    code, out, err = cli("list", "codec")
    assert (code, err) == (0, "") and "q4_1" in out and "attention" not in out
    shown = cli("list", "model")[1]
    assert "not pulled yet" in shown and "Apache-2.0" in shown and "Gemma Terms of Use" in shown


def test_convert_and_back(cli: Run, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    code, out, err = cli("convert", tiny, target, "--to", "gguf", "--dtype", "f32", "--json")
    assert code == 0 and json.loads(out)["path"] == str(target), err
    words = ("--raw", "abc", "-n", "8", "--temp", "0", "--dtype", "float32")
    assert answer(cli, tiny, *words)["token_ids"] == answer(cli, target, *words)["token_ids"]
    code, _, err = cli("convert", tiny, target, "--to", "gguf")
    assert code == 2 and "--overwrite" in err
    assert cli("convert", tiny, target, "--to", "gguf", "--overwrite")[0] == 0


def test_pull_of_a_path_says_where_it_is(cli: Run, tiny: Path) -> None:
    assert cli("pull", tiny)[:2] == (0, f"{tiny}\n")
    found = json.loads(cli("pull", tiny, "--json")[1])
    assert found["bytes"] == sum(file.stat().st_size for file in tiny.iterdir())


def test_pull_names_source_and_license(cli: Run) -> None:
    """A file of the full size was checked when it was pulled; here it is empty, and takes no room."""
    alias = aliases()["gemma-3-270m"]
    file = place("gemma-3-270m", alias, read_env())
    file.parent.mkdir(parents=True)
    with file.open("wb") as out:
        out.truncate(alias.num_bytes)
    code, out_text, err = cli("pull", "gemma-3-270m")
    assert (code, out_text, err) == (0, f"{file}\n", "")
    found = json.loads(cli("pull", "gemma-3-270m", "--json")[1])
    assert (found["license"], found["source"]) == (alias.license, alias.source)


def test_bench_writes_a_record(cli: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    records = importlib.import_module("records")
    path = tmp_path / "r.json"
    words = ["bench", tiny, "--prompt-tokens", "16,24", "--new-tokens", "4", "--streams", "1,2", "--repeat", "2"]
    words += ["--ctx", "100", "--mem", "8MiB", "--draft", "ngram"]
    code, out, err = cli(*words, "--record", path, "--json")
    assert code == 0, err
    record = records.parse(json.loads(path.read_text()))
    assert json.loads(out)["samples"] == record.samples
    speeds, rows = record.results[:4], record.results[4:]
    assert [r.quantity for r in speeds] == ["prefill 16", "prefill 24", "decode x1", "decode x2"]
    assert all(r.median_of == 2 and r.bound > 0 and r.value > 0 for r in speeds)
    assert [r.quantity for r in rows] == [f"step of {n} rows" for n in (1, 2, 4, 8, 16, 32)]
    assert all(r.value > 0 and r.unit == "ms" for r in rows)
    again = shlex.split(record.command)
    assert again[:3] == ["stretto", "bench", str(tiny)], "the command that makes the same record"
    assert _flags.parse(bench_verb.Options, again[2:], "bench") == _flags.parse(
        bench_verb.Options, [str(word) for word in words[1:]], "bench"
    )
    code, out, err = cli(*words)
    assert code == 0 and "of bound" in out and "a draft of 3 pays" in out and "GB/s" in err


def test_doctor(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_WHEEL_INDEX", "https://me:secret@host/simple")
    monkeypatch.setenv("STRETTO_CTX", "64")
    monkeypatch.setenv("STRETTO_THREAD", "2")
    code, out, _ = cli("doctor", tiny, "--threads", "1", "--json")
    found = json.loads(out)
    assert code == 0 and "secret" not in out and found["environment"]["wheel_index"] == "https://***@host/simple"
    assert found["kernels"]["attention"]["runs on"] == "torch"
    assert "STRETTO_THREAD (did you mean STRETTO_THREADS" in found["environment"]["not read"]
    assert "STRETTO_CTX" not in found["environment"]["not read"]
    assert found["settings"] == {
        "draft": {"value": "none", "from": "stretto doctor"},
        "max_seqs": {"value": 1, "from": "stretto doctor"},
        "context": {"value": 64, "from": "STRETTO_CTX"},
        "threads": {"value": 1, "from": "--threads"},
    }
    assert found["measured"]["read GB/s"]["median"] > 0
    # Counted by hand: embedding (= head) 258 x 32, per layer q o 32 x 32, k v 16 x 32, three of 48 x 32, two norms.
    values = 258 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32
    bounds = found["bounds through torch"]
    assert bounds["bytes per token"] == 2 * values and bounds["bytes as stored"] == 4 * values
    native = found["native kernels"]
    assert native["level"] in native["this CPU runs"]
    assert {*native["this CPU runs"], *native["and cannot run"]} == set(LEVELS)
    assert all(needs.startswith("needs ") for needs in native["and cannot run"].values())
    assert found["one decode step"]["runs on"].startswith("native") and found["one decode step"]["  matmul ms"] > 0
    assert found["one decode step"]["layers"] == {"Attention": "2 native", "Dense": "2 native"}
    assert found["one decode step"]["of these in Python"] == {}
    assert "a draft of 3 pays" in found["one decode step"]["4 rows"]
    assert bounds["cache bytes per token"] == 2 * 2 * 2 * 8 * 2, "k and v, two layers, two heads of 8, bf16"
    picked = {
        op
        for file in (Path(cli_package.__file__).parents[1] / "kernels").glob("*/__init__.py")
        for op in re.findall(r'pick\("(\w+)', file.read_text())
    }
    assert set(found["kernels"]) == picked, "the doctor explains every operation that has backends"
    found = json.loads(cli("doctor", tiny, "--backend", "torch", "--json")[1])["one decode step"]
    assert found == {"runs on": "torch", "why": "torch was asked for"}
    code, out, _ = cli("doctor")
    assert code == 0 and all(heading in out for heading in ("versions", "kernels", "measured"))


def test_the_doctor_says_which_layers_have_no_kernel() -> None:
    lm = toy_lm(["attention", "gated_delta", "attention"])
    where = where_parts_run(lm, {"blocks.1.mixer": "aten.x", "blocks.2.mixer.rope": "aten.y"})
    assert where == {"Attention": "1 native, 1 in Python", "Dense": "2 native", "GatedDelta": "1 in Python"}
    assert [block.channel is None for block in lm.blocks].count(True) == 1, "a layer may have no channel"


# -- the parts ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Every kind of field."""

    first: str = argument("needed")
    second: Path | None = argument("not needed", default=None)
    number: int | None = option("n", short="-n", default=None)
    words: tuple[str, ...] = option("w", default=())
    sizes: tuple[int, ...] = option("s", default=(1, 2))
    rate: float = option("r", default=0.5)
    quick: bool = option("q", default=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a", Sample(first="a")),
        ("a --quick b -n5", Sample(first="a", second=Path("b"), quick=True, number=5)),
        ("-n -5 a --words x,y --words z", Sample(first="a", number=-5, words=("x,y", "z"))),
        ("--sizes 3,4 --sizes=5 a --rate=1e-3", Sample(first="a", sizes=(3, 4, 5), rate=1e-3)),
        ("--number 1 --number 2 -- --quick -n", Sample(first="--quick", second=Path("-n"), number=2)),
        ("- --words --quick", Sample(first="-", words=("--quick",))),
    ],
)
def test_parse(line: str, expected: Sample) -> None:
    assert _flags.parse(Sample, line.split(), "sample") == expected


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("rate", "inf", None), ("rate", "-1e400", None), ("rate", "nan", None), ("rate", "x", None), ("rate", "-3", -3),
        ("sizes", "1,x", None), ("sizes", "1.0", None), ("sizes", "5", (5,)), ("number", "9" * 5000, None),
        ("quick", "on", True), ("quick", "No", False), ("quick", "2", None),
    ],
)  # fmt: skip
def test_a_text_becomes_a_value_or_is_refused_by_its_name(name: str, text: str, found: Any) -> None:
    one = next(one for one in options_of(Sample) if one.field == name)
    if found is not None:
        assert one.read([text], "HERE") == found
        return
    with pytest.raises(UserError, match="HERE is"):
        one.read([text], "HERE")


@given(st.lists(st.text(max_size=8) | st.sampled_from(["--quick", "-n", "--sizes", "--", "1", "a"]), max_size=6))
def test_parse_takes_or_refuses_anything(words: list[str]) -> None:
    try:
        _flags.parse(Sample, words, "sample")
    except UserError as problem:
        assert problem.error


def test_terminals_are_not_driven_by_models() -> None:
    assert (
        _terminal.harmless("a\x1b[2J\tb\n\x07\x9b")
        == "a\N{REPLACEMENT CHARACTER}[2J\tb\n" + 2 * "\N{REPLACEMENT CHARACTER}"
    )


def test_prompts_of_the_benchmark_are_text_of_the_right_length() -> None:
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    llm: Any = Bytes()
    for n in (1, 32, 5000):
        ids = bench_verb.prompt_of(llm, n, offset=11)
        assert len(ids) == n and len(set(ids)) > min(n, 40) / 4
    assert bench_verb.prompt_of(llm, 32) != bench_verb.prompt_of(llm, 32, offset=17)


def test_every_verb_offers_json() -> None:
    for verb in VERBS:
        module = importlib.import_module(f"stretto.cli.{'list_' if verb == 'list' else verb}")
        assert "json" in {field.name for field in dataclasses.fields(module.Options)}, verb
