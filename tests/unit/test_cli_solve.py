"""`stretto solve`: a question, a file of questions, the tree, what is refused, and how it is left."""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Run

from stretto.cli import _solve_live
from stretto.cli._solve_live import Live, line
from stretto.cli._solve_tasks import Task
from stretto.core.errors import UserError
from stretto.solve.group import Group
from stretto.solve.status import Status

HOW = ("--extract", "regex:[a-z]", "--seed", 5, "-n", 8, "--draft", "none", "--raw")


def test_one_question(cli: Run, tiny: Path) -> None:
    code, out, err = cli("solve", tiny, "1 + 1 =", "--search", "vote:n=5", *HOW)
    assert code == 0 and out.splitlines()[-1].startswith("answer: ") and len(out.splitlines()[-1]) == 9
    assert "votes; " in err and "5 texts" in err and "seed 5" in err
    found = json.loads(cli("solve", tiny, "1 + 1 =", "--search", "vote:n=5", *HOW, "--json")[1])
    assert f"answer: {found['answer']}" == out.splitlines()[-1] and out.startswith(found["text"])
    assert found["how"]["search"] == "vote:n=5" and found["seed"] == 5
    texts = [node for node in found["tree"] if node["name"] != "0"]
    assert [node["name"] for node in texts] == [f"0.{i}" for i in range(5)]
    assert found["spent"]["tokens"] == sum(node["tokens"] for node in texts) <= 40
    assert found["weights"][found["answer"]] == sum(node["answer"] == found["answer"] for node in texts)


def test_the_tree_is_printed(cli: Run, tiny: Path) -> None:
    words = ("solve", tiny, "1 + 1 =", "--search", "ets:width=3,steps=3,step_tokens=4,by=line", *HOW)
    out = cli(*words, "--show-tree")[1]
    found = json.loads(cli(*words, "--json")[1])
    lines = out.splitlines()
    assert lines[0].startswith("0  prompt of 7 tokens") and lines[1].startswith("├─ 0.0  [")
    assert sum("─ 0." in one for one in lines) == len(found["tree"]) - 1
    assert any(one.startswith(("│  ", "   ")) for one in lines), "children are indented"
    assert "score 0." in out


def test_a_file_of_questions(cli: Run, tiny: Path, tmp_path: Path) -> None:
    answers = [json.loads(cli("solve", tiny, q, *HOW, "--json")[1])["answer"] for q in ("1 + 1 =", "2 + 2 =")]
    file = tmp_path / "tasks.jsonl"
    tasks = [{"question": "1 + 1 =", "answer": answers[0]}, {"question": "2 + 2 =", "answer": "never"}]
    file.write_text("\n".join(map(json.dumps, tasks)) + "\n\n")
    code, out, err = cli("solve", tiny, "--tasks", file, *HOW)
    assert code == 0 and [one.split()[0] for one in out.splitlines()] == ["right", "wrong"]
    assert "1 of 2 right (50.0%)" in err
    found = json.loads(cli("solve", tiny, "--tasks", file, *HOW, "--json")[1])
    assert (found["questions"], found["right"], found["accuracy"]) == (2, 1, 0.5)
    assert [row["answer"] for row in found["tasks"]] == answers
    assert found["tokens"] == sum(row["spent"]["tokens"] for row in found["tasks"]) == 2 * found["tokens_per_question"]


def test_two_models(cli: Run, tiny: Path, tmp_path: Path) -> None:
    """The cheaper one merges some of the groups; both read a conversation that is longer than 128 tokens."""
    wide = shutil.copytree(tiny, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    words = ("solve", wide, "1", "--cheap", wide, "--search", "squeeze:n=4,k=2,rounds=1,quote=2", *HOW[:-1])
    found = json.loads(cli(*words, "--json")[1])
    joined = [node for node in found["tree"] if node["sources"]]
    assert len(joined) == 4 and sorted(node["model"] for node in joined) == [0, 0, 1, 1]
    assert all(len(node["sources"]) == 2 for node in joined)


def test_no_answer_is_a_failure(cli: Run, tiny: Path) -> None:
    code, out, err = cli("solve", tiny, "1 + 1 =", "--extract", "boxed", "-n", "4", "--seed", "1")
    assert (code, out) == (1, "") and "no answer was found" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one question or --tasks FILE"),
        (["q", "--tasks", "FILE"], "one question or --tasks FILE"),
        ([""], "the question is empty"),
        (["q", "--raw", "--system", "s"], "--raw and --system exclude each other"),
        (["q", "--json", "--show-tree"], "--json and --show-tree exclude each other"),
        (["q", "--search", "beam"], "--search is 'beam'"),
        (["q", "--search", "vote:n=0"], "--search is 'vote:n=0'"),
        (["q", "--scorer", "luck"], "--scorer is 'luck'"),
        (["q", "--extract", "last"], "--extract is 'last'"),
        (["q", "--budget-tokens", "0"], "--budget-tokens is 0"),
        (["q", "--budget-seconds", "nan"], "--budget-seconds is nan"),
        (["--tasks", "FILE"], "cannot be read"),
    ],
)
def test_what_is_refused_before_a_model_is_read(cli: Run, words: list[str], said: str, tmp_path: Path) -> None:
    words = [str(tmp_path / "none") if word == "FILE" else word for word in words]
    code, out, err = cli("solve", "no-such-model", *words)
    assert (code, out) == (2, "") and said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no questions"),
        ("{", "line 1 is not JSON"),
        ('{"question": "q"}', "line 1 is not an object"),
        ('\n{"question": "q", "answer": "a", "more": 1}', "line 2 is not an object"),
        ('{"question": "", "answer": "a"}', "the question is ''"),
        ('{"question": "q", "answer": null}', "the answer is None"),
        ('{"question": "q", "answer": true}', "the answer is True"),
    ],
)
def test_files_that_hold_something_else(cli: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tasks").write_text(text)
    code, _, err = cli("solve", "no-such-model", "--tasks", tmp_path / "tasks")
    assert code == 2 and said in err


def test_answers_of_tasks_are_spelled_as_those_of_texts(tmp_path: Path) -> None:
    from stretto.cli._solve_tasks import read_tasks

    (tmp_path / "tasks").write_text('{"question": "q", "answer": 1250.0}\n{"question": "r", "answer": " 1,250 "}')
    assert read_tasks(tmp_path / "tasks") == [Task("q", "1250"), Task("r", "1250")]
    with pytest.raises(UserError):
        read_tasks(tmp_path)


def test_ctrl_c_ends_a_search(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it, with the exit code of an interrupt, and nothing of the model running on."""
    seen: list[Group] = []

    def watch(self: Live, group: Group) -> None:
        seen.append(group)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Live, "__call__", watch)
    code, out, err = cli("solve", tiny, "1 + 1 =", *HOW, "-n", "100", "--search", "vote:n=16")
    assert (code, out) == (130, "") and "interrupted" in err
    served: Any = seen[0].models[0]
    assert served._llm.is_over and served._llm.llm.engine.is_idle


def test_the_line_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(running=3, ended=5, tokens=1240, leader="42", votes=(3, 4))
    assert line(status) == "3 running, 5 ended · 1,240 tokens · 42 leads with 3 of 4"
    assert line(Status(8, 0, 0, None, (0, 0))) == "8 running, 0 ended · 0 tokens"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(_solve_live, "is_terminal", lambda stream: True)
    live = Live("1 of 2 · ")
    live._write("42\x1b[31m")
    live.close()
    assert sys.stderr.getvalue().endswith("\r\x1b[K") and "\x1b[31m" not in sys.stderr.getvalue()
