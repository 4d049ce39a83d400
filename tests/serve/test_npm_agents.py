"""The real agents from npm, each with one small task: a tool is called, its result comes back, the answer is shown.

The model is scripted, so this is about the server alone. Nothing but npm's registry is asked for the clients; they are
pointed at the loopback address, with a home of their own.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import agents
import pytest
from scripted import ScriptedLLM
from serving import Running

from stretto.engine.request import Request
from stretto.text.tools import find_format

pytestmark = pytest.mark.full
MAKE = "touch made.txt"
TASK, ANSWER = "Make the file made.txt", "The file is made."
TOOLS: dict[str, dict[str, Any]] = {
    "shell_command": {"command": MAKE},
    "exec_command": {"cmd": MAKE},
    "shell": {"command": ["bash", "-lc", MAKE]},
    "Bash": {"command": MAKE, "description": "make it"},
    "bash": {"command": MAKE, "description": "make it"},
}
"""What the shell of each agent is called, and its arguments."""
SCRIPTS = {"@openai/codex": "", "@anthropic-ai/claude-code": "install.cjs", "opencode-ai": "postinstall.mjs"}
"""Packages, and what must run after they are installed."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the agents' commands."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("npm")
    for words in ([npm, "install", "--no-audit", "--no-fund", *SCRIPTS], *(
        ["node", f"node_modules/{package}/{script}"] for package, script in SCRIPTS.items() if script
    )):  # fmt: skip
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240)
        if done.returncode:
            pytest.skip(f"the agents cannot be installed: {done.stderr[-500:]}")
    return folder / "node_modules/.bin"


class Scene:
    """An agent in an empty folder, and what the model has read."""

    def __init__(self, server: Running, programs: Path, folder: Path) -> None:
        self.server, self._programs = server, programs
        self.home, self.work = folder / "home", folder / "work"
        for one in (self.home, self.work):
            one.mkdir()

    def run(self, *words: str, **variables: str) -> str:
        """What it prints. Whoever cannot go on ends with an error, which is no matter here."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "NO_COLOR": "1", "IS_SANDBOX": "1", **variables}
        done = subprocess.run(
            [str(self._programs / words[0]), *words[1:]], cwd=self.work, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150,
        )  # fmt: skip
        return done.stdout

    def prompts(self) -> list[str]:
        """Those with tools: an agent may ask for a title, too."""
        llm, found = self.server.llm, list[str]()
        assert isinstance(llm, ScriptedLLM)
        for request in llm.scripted.added:
            text = llm.tokenizer.decode(request.prompt, skip_special=False)
            assert text.startswith("[tools]") == (request.sampling.grammar is not None)
            found += [text] if text.startswith("[tools]") else []
        return found


@contextmanager
def scene(programs: Path, folder: Path, context: int) -> Iterator[Scene]:
    with agents.agent(folder, context=context) as server:
        llm, known = server.llm, dict[int, list[int]]()
        assert isinstance(llm, ScriptedLLM)

        def say(request: Request) -> list[int]:
            if request.rid not in known:
                text = llm.tokenizer.decode(request.prompt, skip_special=False)
                name = next((name for name in TOOLS if f'"name": "{name}"' in text), None)
                made = "[tool]" in text or name is None
                call = "" if made else f"I make it.<call>{name}{json.dumps(TOOLS[str(name)])}</call>"
                known[request.rid] = llm.ids(f"<think>What next?</think>{ANSWER if made else call}")
            return known[request.rid]

        llm.scripted.say = say
        server.service.call_format = find_format("<tool_call>")  # what would be enforced is compiled, for all tools
        yield Scene(server, programs, folder)
        server.settled()


def codex(one: Scene) -> str:
    (one.home / "config.toml").write_text(
        f'model = "toy"\nmodel_provider = "s"\nmodel_context_window = {one.server.service.context}\n'
        f'[model_providers.s]\nname = "s"\nbase_url = "{one.server.url}/v1"\nwire_api = "responses"\n'
    )
    how = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    return one.run("codex", "exec", *how, TASK, CODEX_HOME=str(one.home))


def claude(one: Scene) -> str:
    names = dict.fromkeys(("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"), "toy")
    address = {"ANTHROPIC_BASE_URL": one.server.url, "ANTHROPIC_API_KEY": "none"}
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CONFIG_DIR": str(one.home)}
    return one.run("claude", "-p", TASK, "--allowedTools", "Bash(touch:*)", **names, **address, **quiet)


def opencode(one: Scene) -> str:
    model = {"name": "toy", "tool_call": True, "limit": {"context": 200_000, "output": 8000}}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "s", "options": {"baseURL": f"{one.server.url}/v1"},
                "models": {"toy": model}}  # fmt: skip
    config = {"provider": {"s": provider}, "autoupdate": False, "share": "disabled", "permission": {"bash": "allow"}}
    (one.work / "opencode.json").write_text(json.dumps(config))
    return one.run("opencode", "run", "-m", "s/toy", TASK)


@pytest.mark.parametrize("client", [codex, claude, opencode])
def test_a_task_with_a_tool(programs: Path, tmp_path: Path, client: Callable[[Scene], str]) -> None:
    with scene(programs, tmp_path, context=200_000) as one:
        printed = client(one)
        assert ANSWER in printed and (one.work / "made.txt").exists(), printed
        first, second = one.prompts()
        assert second.startswith(first), "the second prompt goes on from the first, for the prefix cache to find"
        assert "billing-header" not in first


@pytest.mark.parametrize("client, words", [(codex, "context window"), (claude, "Prompt is too long")])
def test_a_prompt_that_is_too_long(programs: Path, tmp_path: Path, client: Callable[[Scene], str], words: str) -> None:
    with scene(programs, tmp_path, context=4096) as one:
        printed = client(one)
        assert words in printed and ANSWER not in printed
        assert not one.prompts()
