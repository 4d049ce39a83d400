"""The command line, in-process where possible: exit codes, texts, streams. Bad input never shows a traceback."""

import dataclasses
import errno
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import native
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from stretto import cli as cli_package
from stretto.cli import VERBS, _flags, _input, _terminal, help_text, main
from stretto.cli import bench as bench_verb
from stretto.cli import convert as convert_verb
from stretto.cli import run as run_verb
from stretto.cli._flags import argument, option
from stretto.core.env import read_env
from stretto.core.errors import FitError, MissingDependency, ModelFileError, RunError, UserError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 256,
    "eos_token_id": 257,
}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    path = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    (path / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(1)
    shapes = {"model.embed_tokens.weight": (258, 32), "model.norm.weight": (32,)}
    for i in range(2):
        layer = {
            "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32),
            "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
            "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`cli(*words, stdin=...)` -> exit code, stdout, stderr; a cache of kernels alone, no network, no terminal."""
    native.pool()  # compiled, if they were not
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(read_env().cache_dir / "native")
    monkeypatch.setenv("STRETTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STRETTO_OFFLINE", "1")
    monkeypatch.delenv("STRETTO_TRACEBACK", raising=False)

    def call(*words: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return call


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(cli: Run, verb: str) -> None:
    code, out, err = cli(verb, "--help")
    assert (code, err) == (0, "") and out == help_text(verb) and cli(verb, "-h")[1] == out
    assert out.startswith(f"usage: stretto {verb} ") and VERBS[verb] in out
    options = cli_package._verb(verb).Options
    for field in dataclasses.fields(options):
        assert field.name.replace("_", "-") in out.lower() and field.metadata["help"]
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
    command = [sys.executable, "-c", probe, "run", str(tiny), "hi", "--raw", "-n", "2", "--json", "--backend", backend]
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
    "temperature nan": (["run", "TINY", "hi", "--temp", "nan"], 2, "temperature is nan"),
    "temperature below": (["run", "TINY", "hi", "--temp=-1"], 2, "temperature is -1"),
    "top_p": (["run", "TINY", "hi", "--top-p", "2"], 2, "top_p is 2"),
    "seed": (["run", "TINY", "hi", "--seed", "-1"], 2, "seed is -1"),
    "no tokens": (["run", "TINY", "hi", "-n", "0"], 2, "max_tokens is 0"),
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


@pytest.mark.parametrize(
    ("problem", "expected", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "error: not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: no space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: permission denied"),
        (BrokenPipeError(), 1, ""),
        (KeyError("x"), 1, "error: this is a bug in stretto: KeyError: 'x'"),
        (UserError("a", "b", "c"), 2, "error: a\nwhy: b\ntry: c\n"),
        (RunError("a"), 1, "error: a\n"),
        (ModelFileError("a"), 3, "error: a\n"),
        (FitError("a"), 4, "error: a\n"),
        (MissingDependency("a"), 5, "error: a\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_each_failure_ends(
    cli: Run, monkeypatch: pytest.MonkeyPatch, problem: BaseException, expected: int, text: str
) -> None:
    def fail(options: object) -> int:
        raise problem

    monkeypatch.setattr("stretto.cli.pull.run", fail)
    code, out, err = cli("pull", "smollm2")
    assert (code, out) == (expected, "") and err.startswith(text) and bool(err) == bool(text)


def test_a_traceback_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stretto.cli.pull.run", lambda options: 1 // 0)
    monkeypatch.delenv("STRETTO_TRACEBACK", raising=False)
    assert main(["pull", "x"]) == 1
    quiet = capsys.readouterr().err
    assert "Traceback" not in quiet and "STRETTO_TRACEBACK=1" in quiet and len(quiet.splitlines()) == 2
    monkeypatch.setenv("STRETTO_TRACEBACK", "1")
    assert main(["pull", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


# -- signals and pipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_running_answer(tiny: Path, number: int, expected: int) -> None:
    code = (
        "import signal, sys; from stretto.cli import bench, main; measure = bench.measure\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored\n"
        "bench.measure = lambda *given: print('measuring', flush=True) or measure(*given)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ("bench", tiny, "--repeat", "1000000", "--new-tokens", "60", "--prompt-tokens", "60")
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "measuring\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == expected, err
    assert out == "" and err == ("interrupted\n" if number == signal.SIGINT else "terminated\n")


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is buffered, so what cannot be written is noticed late, at the flush."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.usefixtures("buffered")
def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], ["run", "--help"]):
        done = subprocess.run([sys.executable, "-m", "stretto", *words], stdout=write, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"")
    os.close(write)


@pytest.mark.usefixtures("buffered")
def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stretto", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: no space left on device" and "Traceback" not in done.stderr


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(cli: Run, *words: object, stdin: str = "") -> dict[str, Any]:
    code, out, err = cli("run", *words, "--json", stdin=stdin)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_json_of_an_answer(cli: Run, tiny: Path) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    found = answer(cli, tiny, "--raw", "hello wörld", "-n", "9", "--seed", "5", "--dtype", "float32", "--draft", "none")
    assert found["prompt_token_ids"] == oracle.encode("hello wörld").ids
    assert len(found["token_ids"]) == 9 or found["finish_reason"] == "stop"
    assert found["text"] == oracle.decode(found["token_ids"])
    assert found["usage"]["prompt_tokens"] == 12 and found["usage"]["completion_tokens"] == len(found["token_ids"])
    assert found["usage"]["total_tokens"] == 12 + len(found["token_ids"])
    assert (found["seed"], found["draft"], found["dtype"], found["model"]) == (5, "none", "float32", str(tiny))
    numbers = ("load_s", "prefill_s", "decode_s", "prompt_per_second", "predicted_per_second")
    assert all(found["timings"][name] > 0 for name in numbers) and found["timings"]["draft_n"] == 0


def test_flags_reach_the_engine(cli: Run, tiny: Path) -> None:
    def ids(*words: object) -> list[int]:
        return list(answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", *words)["token_ids"])

    greedy = ids("--temp", "0", "--draft", "none")
    assert greedy == ids("--temp", "0", "--draft", "ngram:nodes=5") == ids("--top-k", "1") == ids("--top-p", "1e-9")
    assert greedy == ids("--min-p", "1")
    sampled = ids("--seed", "3", "--draft", "none")
    assert sampled == ids("--seed", "3", "--draft", "ngram") and sampled != ids("--seed", "4", "--draft", "none")
    stop = answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", "--temp", "0")["text"][4]
    found = answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", "--temp", "0", "--stop", stop)
    assert found["finish_reason"] == "stop" and stop not in found["text"]


def test_prompts_from_a_template_and_from_standard_input(cli: Run, tiny: Path, tmp_path: Path) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))

    def prompt(*words: object, stdin: str = "") -> str:
        return str(oracle.decode(answer(cli, tiny, "-n", "1", *words, stdin=stdin)["prompt_token_ids"]))

    assert prompt("hi") == "[user]hi[a]"
    assert prompt("hi", "--system", "be") == "[system]be[user]hi[a]"
    assert prompt(stdin="piped\n") == prompt("-", stdin="piped") == "[user]piped[a]"
    assert prompt("--raw", stdin="two\nlines\n\n") == "two\nlines\n"
    (tmp_path / "own.jinja").write_text("<{{ messages[0].content }}>")
    assert prompt("hi", "--chat-template", tmp_path / "own.jinja") == "<hi>"
    found = json.loads(cli("run", "--raw", "--json", "-n", "1", "--", tiny, "--json")[1])
    assert oracle.decode(found["prompt_token_ids"]) == "--json", "after -- nothing is a flag"


def test_text_goes_to_stdout_and_stats_to_stderr(cli: Run, tiny: Path) -> None:
    words = ("run", tiny, "--raw", "abcabc", "-n", "12", "--temp", "0", "--dtype", "float32")
    text = json.loads(cli(*words, "--json")[1])["text"]
    code, out, err = cli(*words, "--stats", "--draft", "none")
    assert code == 0 and out == text + ("" if text.endswith("\n") else "\n")
    for row in ("time to first token", "prefill", "decode", "tokens per step", "drafted, accepted"):
        assert f"\n{row} " in err
    assert "1.00" in err and cli(*words)[2] == ""


def test_show_draft_marks_what_was_accepted_and_rejected(cli: Run, tiny: Path) -> None:
    words = ("run", tiny, "--raw", "abcabcabc", "-n", "60", "--temp", "0", "--dtype", "float32", "--draft", "ngram")
    found = json.loads(cli(*words, "--json")[1])
    out = cli(*words, "--show-draft")[1]
    accepted = out.count("{+")
    assert found["timings"]["draft_n"] > found["timings"]["draft_n_accepted"] and "[-" in out
    assert bool(accepted) == bool(found["timings"]["draft_n_accepted"])


class Typist:
    """Stands for a person: answers `input` with the lines, then Ctrl-D; an exception is raised instead."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def __call__(self, prompt: str = "") -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A chat with the tiny model in a pretended terminal; returns also the conversations that were sent."""

    def call(*lines: str | type[BaseException], flags: Sequence[str] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("builtins.input", Typist(*lines))
        monkeypatch.setattr(_input, "is_terminal", lambda stream: True)
        code = main(["run", str(tiny), "--temp", "0", "-n", "5", "--dtype", "float32", *flags])
        return (code, *capsys.readouterr())

    return call


def test_chat_keeps_the_conversation_until_reset(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.llm import LLM

    sent: list[list[str]] = []
    original = LLM.chat_stream

    def spy(self: LLM, messages: Any, sampling: Any = None, **options: Any) -> Any:
        sent.append([message["role"][0] + ":" + str(message["content"]) for message in messages])
        return original(self, messages, sampling, **options)

    monkeypatch.setattr(LLM, "chat_stream", spy)
    code, _, err = chat(
        "one", KeyboardInterrupt, "two", "/rset", "/reset", "three", "", "/exit", "four", flags=["--system", "S"]
    )
    assert code == 0 and "did you mean /reset" in err
    first = sent[1][2]
    assert sent == [["s:S", "u:one"], ["s:S", "u:one", first, "u:two"], ["s:S", "u:three"]] and first[:2] == "a:"


def test_a_turn_that_does_not_fit_is_taken_back(chat: Run) -> None:
    code, out, err = chat("long " * 40, "ok")
    assert code == 0 and "error: the prompt has 208 tokens; the context is 128" in err and "taken back" in err
    assert out.strip(), "the chat goes on"


def test_ctrl_c_stops_one_answer_and_keeps_the_chat(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.llm import LLM

    original, pieces = LLM.chat_stream, list[int]()

    def interrupted(self: LLM, messages: Any, sampling: Any = None, **options: Any) -> Any:
        pieces.append(0)
        for chunk in original(self, messages, sampling, **options):
            pieces[-1] += 1
            if len(pieces) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)  # Python runs the handler at the next instruction of the main thread
            yield chunk

    monkeypatch.setattr(LLM, "chat_stream", interrupted)
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)  # a shell may have left it ignored
    code, _, _ = chat("one", "two", flags=["--draft", "none"])
    assert code == 0 and pieces[0] == 1 and pieces[1] == 5
    assert signal.getsignal(signal.SIGINT) is before


# -- without native kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [False, True], ids=["no compiler", "a compiler that fails"])
def test_torch_answers_where_nothing_can_be_compiled(cli: Run, tiny: Path, tmp_path: Path, is_there: bool) -> None:
    tools, cache = tmp_path / "tools", tmp_path / "empty"
    tools.mkdir()
    if is_there:
        (tools / "c++").write_text("#!/bin/sh\necho no space in the register >&2\nexit 1\n")
        (tools / "c++").chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRETTO_")}
    environ |= {"PATH": str(tools), "STRETTO_CACHE": str(cache)}
    run = ["run", "--json", str(tiny), "Hello", "-n", "4", "--temp", "0"]

    def start(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stretto", *run, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)

    done = start()
    lines = done.stderr.splitlines()
    reasons = [line for line in lines if "not on the native kernels" in line]
    assert done.returncode == 0 and len(reasons) == 1 and len(lines) == (2 if is_there else 1), done.stderr
    answer, want = json.loads(done.stdout), json.loads(cli(*run, "--backend", "torch")[1])
    assert answer["backend"] == "torch" and answer["token_ids"] == want["token_ids"] and len(want["token_ids"]) == 4
    if is_there:
        assert "compiling the native kernels" in lines[0]
        log = Path(reasons[0].rsplit(" ", 1)[1])
        assert log.is_relative_to(cache) and "no space in the register" in log.read_text()
    else:
        assert "no C++ compiler" in reasons[0] and not cache.exists()

    done = start("--backend", "native")
    lines = done.stderr.splitlines()[is_there:]
    assert (done.returncode, done.stdout) == (2, "") and [line.partition(":")[0] for line in lines] == [
        "error",
        "why",
        "try",
    ]
    assert ("do not compile" if is_there else "no C++ compiler") in lines[1]


# -- other verbs -------------------------------------------------------------------------------------------------------


def test_show(cli: Run, tiny: Path) -> None:
    found = json.loads(cli("show", tiny, "--json")[1])
    assert (found["family"], found["context"], found["vocab_size"]) == ("llama", 128, 258)
    code, out, err = cli("show", tiny)
    assert (code, err) == (0, "") and "context" in out and "tied head" in out


def test_list(cli: Run) -> None:
    found = json.loads(cli("list", "--json")[1])
    assert set(found) == {"mixer", "channel", "codec", "drafter", "judge", "policy", "model"}
    assert "attention" in [card["name"] for card in found["mixer"]]
    assert found["model"] == [m for m in found["model"] if m["path"] is None], "the cache of the test is empty"
    code, out, err = cli("list", "codec")
    assert (code, err) == (0, "") and "q4_1" in out and "attention" not in out
    assert "not pulled yet" in cli("list", "model")[1]


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


def test_bench_writes_a_record(cli: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    records = importlib.import_module("records")
    path = tmp_path / "r.json"
    words = ["bench", tiny, "--prompt-tokens", "16,24", "--new-tokens", "4", "--streams", "1,2", "--repeat", "2"]
    code, out, err = cli(*words, "--record", path, "--json")
    assert code == 0, err
    record = records.parse(json.loads(path.read_text()))
    assert json.loads(out)["samples"] == record.samples
    assert [r.quantity for r in record.results] == ["prefill 16", "prefill 24", "decode x1", "decode x2"]
    assert all(r.median_of == 2 and r.bound > 0 and r.value > 0 for r in record.results)
    again = shlex.split(record.command)
    assert again[:3] == ["stretto", "bench", str(tiny)], "the command that makes the same record"
    assert _flags.parse(bench_verb.Options, again[2:], "bench") == _flags.parse(
        bench_verb.Options, [str(word) for word in words[1:]], "bench"
    )
    code, out, err = cli(*words)
    assert code == 0 and "of bound" in out and "GB/s" in err


def test_doctor(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_WHEEL_INDEX", "https://me:secret@host/simple")
    code, out, _ = cli("doctor", tiny, "--json")
    found = json.loads(out)
    assert code == 0 and "secret" not in out and found["environment"]["wheel_index"] == "https://***@host/simple"
    assert found["kernels"]["attention"]["runs on"] == "torch"
    assert found["measured"]["read GB/s"]["median"] > 0
    # Counted by hand: embedding (= head) 258 x 32, per layer q o 32 x 32, k v 16 x 32, three of 48 x 32, two norms.
    values = 258 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32
    bounds = found["bounds through torch"]
    assert bounds["bytes per token"] == 2 * values and bounds["bytes as stored"] == 4 * values
    assert found["native kernels"]["level"] in found["native kernels"]["this CPU runs"]
    assert found["one decode step"]["runs on"].startswith("native") and found["one decode step"]["  matmul ms"] > 0
    assert bounds["cache bytes per token"] == 2 * 2 * 2 * 8 * 2, "k and v, two layers, two heads of 8, bf16"
    picked = {
        op
        for file in (Path(cli_package.__file__).parents[1] / "kernels").glob("*/__init__.py")
        for op in re.findall(r'pick\("(\w+)', file.read_text())
    }
    assert set(found["kernels"]) == picked, "the doctor explains every operation that has backends"
    code, out, _ = cli("doctor")
    assert code == 0 and all(heading in out for heading in ("versions", "kernels", "measured"))


# -- the parts ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Every kind of field."""

    first: str = argument("needed")
    second: Path | None = argument("not needed", default=None)  # noqa: RUF009  a field
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
    for module in (run_verb, bench_verb, convert_verb):
        assert "json" in {field.name for field in dataclasses.fields(module.Options)}
    assert list(VERBS) == ["run", "pull", "show", "list", "convert", "bench", "doctor"]
