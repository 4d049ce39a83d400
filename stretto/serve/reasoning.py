"""Text into thinking and answer, while it grows.

Models that think write it between two tags, which their chat template shows. Law: however the text is cut into pieces,
the pieces of each part joined are the same. White space around the thinking belongs to neither part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Part = Literal["reasoning", "content"]


class Tags(NamedTuple):
    """What a model writes around its thinking."""

    opening: str
    closing: str


KNOWN = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))


def tags_of(template: str | None) -> Tags | None:
    """The tags of the models that this chat template was written for; None if they do not think."""
    return next((tags for tags in KNOWN if template is not None and tags.closing in template), None)


def is_open(prompt: str, tags: Tags) -> bool:
    """Whether a prompt ends inside of thinking: templates may write the opening tag themselves."""
    return prompt.rfind(tags.opening) > prompt.rfind(tags.closing)


def comes_first(prompt: str, tags: Tags, template: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether an answer to `prompt` begins with thinking: it was opened; or it was not closed, and it is switched on,
    as it is for templates that know the switch."""
    if is_open(prompt, tags):
        return True
    if prompt.rstrip().endswith(tags.closing):
        return False
    switch = kwargs.get("enable_thinking", kwargs.get("thinking", "enable_thinking" in template))
    return bool(switch)


@dataclass(slots=True)
class Splitter:
    """tags: None = everything is the answer. is_open: the text begins inside of thinking."""

    tags: Tags | None
    is_open: bool = False
    _stage: Literal["start", "thinking", "after", "content"] = "start"
    _held: str = ""
    _has_thought: bool = False  # something of the thinking was given out

    def __post_init__(self) -> None:
        if self.tags is None:
            self._stage = "content"

    def push(self, text: str) -> list[tuple[Part, str]]:
        """What `text` makes certain, in order."""
        return self._read(text, is_last=False)

    def finish(self) -> list[tuple[Part, str]]:
        """What was held back."""
        return self._read("", is_last=True)

    def _read(self, text: str, *, is_last: bool) -> list[tuple[Part, str]]:
        found: list[tuple[Part, str]] = []
        self._held += text
        if self._stage == "start" and not self._begin(is_last):
            return found
        if self._stage == "thinking":
            self._think(found, is_last)
        if self._stage == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._stage = "content"
        if self._stage == "content" and self._held:
            found.append(("content", self._held))
            self._held = ""
        return found

    def _begin(self, is_last: bool) -> bool:
        """Whether it is known if thinking comes first."""
        assert self.tags is not None
        opening, begun = self.tags.opening, self._held.lstrip()
        if begun.startswith(opening):
            self._held, self._stage = begun[len(opening) :], "thinking"
        elif opening.startswith(begun) and not is_last:
            return False
        elif self.is_open:
            self._held, self._stage = begun, "thinking"
        else:
            self._stage = "content"
        return True

    def _think(self, found: list[tuple[Part, str]], is_last: bool) -> None:
        assert self.tags is not None
        closing = self.tags.closing
        if not self._has_thought:
            self._held = self._held.lstrip()
        at = self._held.find(closing)
        if at >= 0:
            thought, self._held, self._stage = self._held[:at].rstrip(), self._held[at + len(closing) :], "after"
        else:
            keep = 0 if is_last else _kept(self._held, closing)
            thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if is_last:
                thought = thought.rstrip()
        if thought:
            self._has_thought = True
            found.append(("reasoning", thought))


def _kept(text: str, closing: str) -> int:
    """Length of the end of `text` that may belong to the closing tag, with the white space before it."""
    n = next((n for n in range(min(len(text), len(closing) - 1), 0, -1) if closing.startswith(text[-n:])), 0)
    head = text[: len(text) - n]
    return n + len(head) - len(head.rstrip())
