"""A scripted model that thinks and calls tools, with a reader of its calls: for what the APIs make of an answer.

<think>why</think>text<call>name{"a": 1}</call>
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from scripted import ScriptedLLM
from serving import Running, serving

from stretto.serve.parts import Argued, Called, CallPart, Said

TEMPLATE = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
THOUGHT, TEXT = "two words", "It is wärm. "
CALLS = [("weather", '{"city": "Zürich", "days": [1, 2]}'), ("clock", "{}")]
ANSWER = f"<think>{THOUGHT}</think>{TEXT}" + "".join(f"<call>{name}{given}</call>" for name, given in CALLS)
FUNCTION: dict[str, Any] = {
    "name": "weather", "description": "of a city", "parameters": {"type": "object", "properties": {"city": {}}},
}  # fmt: skip


class Calls:
    """Reads `<call>NAME{...}</call>`."""

    def __init__(self) -> None:
        self.held, self.inside, self.count = "", "", -1

    def push(self, text: str) -> list[CallPart]:
        self.held += text
        found: list[CallPart] = []
        while self.step(found):
            pass
        return found

    def step(self, found: list[CallPart]) -> bool:
        mark = {"": "<call>", "name": "{", "arguments": "</call>"}[self.inside]
        before, there, after = self.held.partition(mark)
        if self.inside == "name":
            if there:
                self.count, self.inside, self.held = self.count + 1, "arguments", there + after
                found.append(Called(self.count, before))
            return bool(there)
        if not there:
            keep = next((n for n in range(len(mark) - 1, 0, -1) if before.endswith(mark[:n])), 0)
            before, after = before[: len(before) - keep], before[len(before) - keep :]
        if before:
            found.append(Argued(self.count, before) if self.inside else Said(before))
        self.held = after
        if there:
            self.inside = "" if self.inside else "name"
        return bool(there)

    def finish(self) -> list[CallPart]:
        held, self.held = self.held, ""
        return [Said(held)] if held and not self.inside else []


@contextmanager
def agent(folder: Path, *, context: int = 4096, **options: Any) -> Iterator[Running]:
    """A server of a model that says `ANSWER`, until it is told to say something else."""
    one = ScriptedLLM(folder, lambda request: [], context=context, template=TEMPLATE)
    says(one, ANSWER)
    with serving(one, **options) as server:
        server.service.call_readers = Calls
        server.service.open(server.service.llm)  # so that it says that it calls tools
        yield server


def says(llm: ScriptedLLM, text: str) -> None:
    """From now on it answers with this text."""
    ids = llm.ids(text)
    llm.scripted.say = lambda request: ids


def prompt(llm: ScriptedLLM) -> str:
    """What it read last."""
    return llm.tokenizer.decode(llm.scripted.added[-1].prompt, skip_special=False)


def blocks(response: httpx.Response) -> list[tuple[str, str]]:
    """The events of a stream as (name, data); every byte of it belongs to one."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    text = response.content.decode()
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        found.append((name.removeprefix("event: "), data.removeprefix("data: ")))
    return found


def squeezed(names: list[str]) -> list[str]:
    """Names with repetitions in a row as one."""
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
