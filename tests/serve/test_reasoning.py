"""Thinking told from answers, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import TEMPLATE, saying
from serving import HELLO, joined, serving

from stretto.serve.reasoning import KNOWN, Splitter, Tags, comes_first, is_open, tags_of

THINK = KNOWN[0]
CASES = [
    ("<think>\n a b \n</think>\n\nhello <think>x</think> ", False, "a b", "hello <think>x</think> "),
    ("  hi <th", False, "", "  hi <th"),
    ("no tags", False, "", "no tags"),
    (" \n<think>x</thi", False, "x</thi", ""),
    ("a</think>b", False, "", "a</think>b"),
    ("a</think>b", True, "a", "b"),
    ("<think>a</think>b", True, "a", "b"),
    ("never closed ", True, "never closed", ""),
    ("<think></think>", False, "", ""),
    ("<think>  \n </think>  x", False, "", "x"),
    ("<think>a</ think> < /think></think>\nz", False, "a</ think> < /think>", "z"),
    ("", False, "", ""),
    ("", True, "", ""),
    ("\n", False, "", "\n"),
]


def split(pieces: list[str], *, opened: bool, tags: Tags | None = THINK) -> tuple[str, str]:
    one, found = Splitter(tags, opened), {"reasoning": "", "content": ""}
    for part, text in [x for piece in pieces for x in one.push(piece)] + one.finish():
        assert text
        found[part] += text
    return found["reasoning"], found["content"]


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), CASES)
def test_the_parts_of_a_text(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert split([text], opened=opened) == (reasoning, content)
    assert split(list(text), opened=opened) == (reasoning, content)
    assert split([text], opened=opened, tags=None) == ("", text)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", " ", "\n", "a", "ü", "<"]), max_size=12),
    st.lists(st.integers(1, 5), min_size=1),
    st.booleans(),
)
def test_pieces_make_no_difference(words: list[str], steps: list[int], opened: bool) -> None:
    text, at, pieces = "".join(words), 0, []
    while at < len(text):
        pieces.append(text[at : at + steps[len(pieces) % len(steps)]])
        at += len(pieces[-1])
    assert split(pieces, opened=opened) == split([text], opened=opened)


def test_what_a_template_says_of_thinking() -> None:
    assert tags_of(None) is None and tags_of(TEMPLATE) is None
    assert tags_of("x <think> </think>") == THINK
    assert tags_of("[THINK]..[/THINK]") == Tags("[THINK]", "[/THINK]")
    assert is_open("a<think>\n", THINK) and not is_open("a<think>\n\n</think>\n", THINK) and not is_open("a", THINK)


def test_whether_thinking_comes_first() -> None:
    plain, switch = "{{ '</think>' }}", "{% if enable_thinking %}</think>{% endif %}"
    assert comes_first("<a><think>\n", THINK, plain, {}), "the prompt has opened it"
    assert not comes_first("<a><think>\n\n</think>\n\n", THINK, switch, {}), "and closed it"
    assert comes_first("<think>x</think>y<a>", THINK, switch, {}), "the model will open it"
    assert not comes_first("<think>x</think>y<a>", THINK, plain, {}), "a template that only shows earlier thinking"
    assert comes_first("<a>", THINK, plain, {"thinking": True}), "it was switched on"
    assert not comes_first("<a>", THINK, switch, {"enable_thinking": False, "thinking": False}), "and off"


def test_a_server_of_a_model_that_thinks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The template opens the thinking where it is asked to; both names carry it, whole and streamed."""
    template = TEMPLATE + "{% if enable_thinking %}<think>\n{% endif %}{# </think> #}"
    says = saying(tmp_path_factory.mktemp("think"), "two ünd two\n</think>\n\nFour.", template=template)
    with serving(says) as one:
        kwargs = {"max_tokens": 60, "chat_template_kwargs": {"enable_thinking": True}}
        message = one.chat(**kwargs)["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("two ünd two", "Four.")
        assert message["reasoning_content"] == message["reasoning"]
        events = one.events(**kwargs)
        assert joined(events, "reasoning") == joined(events, "reasoning_content") == "two ünd two"
        assert joined(events) == "Four."
        first = one.chat(**{**kwargs, "max_tokens": 4})["choices"][0]["message"]
        assert (first["reasoning"], first["content"]) == ("two", ""), "cut off while it thinks"
        assert one.chat(max_tokens=60)["choices"][0]["message"]["content"].startswith("two"), "nobody opened it"
        assert one.http.get("/v1/models").json()["data"][0]["capabilities"] == [
            "completion", "chat", "thinking", "structured_output",
        ]  # fmt: skip
        turn = {"role": "assistant", "content": "Four.", "reasoning": "two and two"}
        assert one.post("/apply-template", {"messages": [*HELLO, turn]}).status_code == 200
    with serving(says, reasoning=False) as one:
        message = one.chat(**kwargs)["choices"][0]["message"]
        assert message["content"] == "two ünd two\n</think>\n\nFour." and "reasoning" not in message
