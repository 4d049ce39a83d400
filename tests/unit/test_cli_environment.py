"""Strange environments: no home, a user id without an account, terminals that only print, `~` that no shell read."""

import io
import json
import os
import pty
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Run

from stretto.cli import _flags, _terminal, main
from stretto.cli import convert as convert_verb
from stretto.core.env import Env, expand_home, read_display, read_env
from stretto.core.errors import RunError, UserError

PLACES = ("HOME", "XDG_CACHE_HOME", "STRETTO_CACHE")


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with `--user 54321`."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "/h"}, "/h/.cache/stretto"),
        ({"HOME": "/"}, "/.cache/stretto"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/stretto"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/stretto"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "x"}, "/h/.cache/stretto"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "~/x"}, "/h/.cache/stretto"),
        ({"HOME": "/h", "STRETTO_CACHE": "/s", "XDG_CACHE_HOME": "/x"}, "/s"),
        ({"HOME": "/h", "STRETTO_CACHE": "~"}, "/h"),
        ({"HOME": "/h", "STRETTO_CACHE": "~/models"}, "/h/models"),
        ({"HOME": "/h", "STRETTO_CACHE": "~//models"}, "/h/models"),
        ({"HOME": "/h", "STRETTO_CACHE": "here"}, "here"),
        ({"HOME": "/h", "STRETTO_CACHE": "./~"}, "~"),
        ({"HOME": "/h", "STRETTO_CACHE": "~no-such-account/x"}, "~no-such-account/x"),
        ({}, "/account/.cache/stretto"),
        ({"HOME": ""}, "/account/.cache/stretto"),
        ({"HOME": "relative"}, "/account/.cache/stretto"),
        ({"HOME": "", "STRETTO_CACHE": "~/models"}, "/account/models"),
    ],
    ids=str,
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    account = pwd.struct_passwd(("me", "x", 1, 1, "", "/account", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: account)
    assert read_env(variables).cache_dir == Path(expected)


@pytest.mark.parametrize("variables", [{}, {"HOME": ""}, {"HOME": "x"}, {"XDG_CACHE_HOME": "x"}], ids=str)
@pytest.mark.usefixtures("no_account")
def test_nowhere_for_a_cache(variables: dict[str, str]) -> None:
    env = read_env(variables)
    assert env.cache is None
    with pytest.raises(RunError, match="STRETTO_CACHE=FOLDER"):
        _ = env.cache_dir
    assert read_env({**variables, "STRETTO_CACHE": "/s"}).cache_dir == Path("/s")
    for name in ("STRETTO_CACHE", "STRETTO_CXX", "STRETTO_WHEEL_INDEX"):
        with pytest.raises(UserError, match="~/x: there is no home folder"):
            read_env({**variables, name: "~/x"})


def test_a_tilde_is_the_home_folder_as_python_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for path in ("~", "~/x", "~root", "~root/x", "~no-such-account/x", "a/~", "./~/x", "/~", "", "x~"):
        assert expand_home(path) == os.path.expanduser(path)
    assert expand_home("~\0") == "~\0"
    env = read_env({"HOME": "/h", "STRETTO_CXX": "~/bin/c++", "STRETTO_WHEEL_INDEX": "~/wheels"})
    assert (env.cxx, env.wheel_index) == ("/h/bin/c++", "/h/wheels")
    assert read_env({"STRETTO_WHEEL_INDEX": "https://host//simple/"}).wheel_index == "https://host//simple/"


def test_a_tilde_on_the_command_line(cli: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave `--flag=~/x` and quoted words as they are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").symlink_to(tiny)
    (tmp_path / "own.jinja").write_text("<{{ messages[0].content }}>")
    assert cli("show", "~/m", "--json")[0] == 0
    words = ("run", "~/m", "hi", "--chat-template=~/own.jinja", "-n", "1", "--json", "--backend", "torch")
    code, out, err = cli(*words)
    assert code == 0 and len(json.loads(out)["prompt_token_ids"]) == len("<hi>"), err
    assert cli("convert", "~/m", "~/m.gguf", "--to", "gguf")[0] == 0 and (tmp_path / "m.gguf").is_file()
    options = _flags.parse(convert_verb.Options, ["~/m", "~/x", "--to", "hf"], "convert")
    assert (options.src, options.dst) == ("~/m", tmp_path / "x"), "only what is a path is read as one"
    monkeypatch.chdir(tmp_path)
    Path("~m").symlink_to(tiny)
    assert cli("show", "~m", "--json")[0] == 0, "a file may be called so"


# -- no home -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_account")
def test_every_verb_without_a_home(cli: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    assert cli("--version")[0] == cli("--help")[0] == cli("list")[0] == cli("list", "model")[0] == 0
    assert {model["path"] for model in json.loads(cli("list", "model", "--json")[1])["model"]} == {None}
    assert cli("rum")[2].startswith("error: unknown verb 'rum'")
    assert cli("show", tiny)[0] == cli("pull", tiny)[0] == 0
    assert cli("convert", tiny, tmp_path / "m.gguf", "--to", "gguf")[0] == 0
    code, out, err = cli("run", tmp_path / "m.gguf", "hi", "-n", "2", "--temp", "0", "--json")
    assert code == 0 and json.loads(out)["backend"] == "torch"
    assert err.startswith("note: not on the native kernels") and "STRETTO_CACHE" in err and err.count("\n") == 1
    code, out, err = cli("run", tiny, "hi", "--backend", "native")
    assert (code, out) == (2, "") and "STRETTO_CACHE" in err
    for words in (("run", "smollm2", "hi"), ("pull", "smollm2"), ("show", "smollm2")):
        code, out, err = cli(*words)
        assert (code, out) == (1, "") and "try: STRETTO_CACHE=FOLDER" in err
    code, out, err = cli("show", "~/m.gguf")
    assert (code, out) == (2, "") and "error: ~/m.gguf: there is no home folder" in err


@pytest.mark.usefixtures("no_account")
def test_the_doctor_and_the_benchmark_without_a_home(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stretto.planner.measure.gemm_rate", measured)
    monkeypatch.setattr("stretto.planner.measure.read_bandwidth", measured)
    found = json.loads(cli("doctor", "--json")[1])
    assert found["environment"]["cache"] == "none" and "STRETTO_CACHE" in found["native kernels"]["not available"]
    words = ("bench", tiny, "--prompt-tokens", "8", "--new-tokens", "2", "--streams", "1", "--repeat", "1", "--json")
    assert cli(*words)[0] == 0


def measured(*given: object) -> Any:
    from stretto.planner.measure import Measured

    return Measured((1e9,))


def test_a_new_process_without_a_home(tiny: Path) -> None:
    """What is imported looks for a home too; a home that is a file stands for one where nothing may be written."""
    code = (
        "import pwd, sys\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
        "from stretto.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "run", str(tiny), "hi", "--no-stdin", "-n", "2", "--json"]
    bare = {name: value for name, value in os.environ.items() if name not in PLACES}
    for environ in (bare, bare | {"HOME": os.devnull}):
        done = subprocess.run(words, capture_output=True, text=True, env=environ)
        assert done.returncode == 0 and json.loads(done.stdout)["backend"] == "torch", done.stderr
        assert done.stderr.startswith("note: not on the native kernels") and done.stderr.count("\n") == 1


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{"STRETTO_THREADS": "many"}, {"STRETTO_CACHE": "~/x"}], ids=str)
@pytest.mark.usefixtures("no_account")
def test_messages_do_not_depend_on_the_rest_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, variables: dict[str, str]
) -> None:
    """A variable that cannot be read is an error of what needs it, not of the message about another one."""

    def said(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stderr", Terminal())
        code = main(words)
        return code, sys.stderr.getvalue()  # type: ignore[attr-defined]

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ((name, value),) = variables.items()
    code, text = said("rum")
    assert code == 2 and text.startswith("\x1b[1;31merror:\x1b[0m unknown verb")
    code, text = said("show", str(tiny))
    assert code == 2 and value in text
    monkeypatch.setattr("stretto.cli.pull.run", lambda options: 1 // 0)
    code, text = said("pull", "x")
    assert code == 1 and text.startswith("error: this is a bug in stretto: ZeroDivisionError") and "Trace" not in text
    monkeypatch.setenv("STRETTO_TRACEBACK", "1")
    code, text = said("pull", "x")
    assert code == 1 and "Traceback" in text


def test_notes_never_reach_standard_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`print` to a standard error that is closed prints on standard output."""
    monkeypatch.setattr(sys, "stderr", None)
    _terminal.note("for the person")
    _terminal.progress("for the person")(0, 1)
    assert capsys.readouterr().out == ""


# -- terminals ---------------------------------------------------------------------------------------------------------


def test_what_a_terminal_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """colours, cursor: what is written where somebody looks; elsewhere neither."""
    cases: list[tuple[dict[str, str], bool, bool]] = [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "CI": "true"}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "Dumb"}, False, False),
        ({"TERM": "unknown"}, False, False),
        ({"TERM": ""}, False, False),
        ({}, False, False),
    ]
    for variables, colours, cursor in cases:
        for name in ("TERM", "NO_COLOR", "CI"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert _terminal.has_colour(Terminal()) == colours and not _terminal.has_colour(io.StringIO()), variables
        monkeypatch.setattr(sys, "stderr", Terminal())
        show = _terminal.progress("loading")
        show(0, 2), show(1, 1)
        assert sys.stderr.getvalue() == ("\r\x1b[Kloading 0%\r\x1b[K" if cursor else ""), variables  # type: ignore[attr-defined]
        for words in (["list", "model"], ["list", "codec"]):
            monkeypatch.setattr(sys, "stdout", Terminal())
            assert main(words) == 0
            assert ("\x1b" in sys.stdout.getvalue()) == colours, variables  # type: ignore[attr-defined]


def test_a_display_is_a_part_of_the_environment() -> None:
    variables = {"TERM": "dumb", "NO_COLOR": "x", "STRETTO_TRACEBACK": "on"}
    display, env = read_display(variables), read_env(variables)
    assert (display.dumb, display.no_color, display.traceback) == (True, True, True)
    assert (env.dumb, env.no_color, env.traceback) == (True, True, True) and isinstance(env, Env)


def in_a_terminal(words: list[str], environ: dict[str, str]) -> bytes:
    """What a command shows there."""
    screen, terminal = pty.openpty()
    child = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, env=environ)
    os.close(terminal)
    shown = b""
    while block := _read(screen):
        shown += block
    os.close(screen)
    child.wait(60)
    return shown


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 1 << 16)
    except OSError:  # Linux says so when nobody has the terminal open any more
        return b""


def test_no_escape_sequences_in_a_dumb_terminal(tiny: Path) -> None:
    command = [sys.executable, "-m", "stretto", "run"]
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    missing = [*command, "no-such-model.gguf", "x"]
    assert in_a_terminal(missing, environ | {"TERM": "xterm"}).startswith(b"\x1b[1;31merror:\x1b[0m no such file")
    assert in_a_terminal(missing, environ | {"TERM": "dumb"}).startswith(b"error: no such file")
    words = [*command, str(tiny), "abab", "--raw", "-n", "9", "--temp", "0", "--draft", "ngram", "--show-draft"]
    shown = in_a_terminal([*words, "--backend", "torch"], environ | {"TERM": "dumb"})
    assert b"\x1b" not in shown and b"error" not in shown and b"{+" in shown
