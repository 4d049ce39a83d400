"""What reaches a chat template: messages, tool calls, tools, named tokens; and where a BOS comes from."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chat_templates import ARGUMENTS, SPECIAL_TOKENS, TOOLS, Conversation, reference
from command import write_tiny
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stretto.convert.gguf_ import GGUFFile
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.llm import LLM
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]
SHOW = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"


def render(source: str, messages: Any = HI, **kwargs: Any) -> str:
    return ChatTemplate(source, SPECIAL_TOKENS).render(messages, **kwargs)


def shown(messages: Any) -> list[dict[str, Any]]:
    """The messages as a template sees them."""
    return [json.loads(line) for line in render(SHOW, messages).splitlines()]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "conversation of 0 messages"),
        (HI * 4097, "conversation of 4,097 messages"),
        ("hi", "must be a list"),
        ([{"content": "x"}], r"messages\[0\] needs a role"),
        ([{"role": 1, "content": "x"}], r"messages\[0\] needs a role"),
        ([*HI, {"role": "user"}], r"messages\[1\].content must be text"),
        ([*HI, {"role": "user", "content": None}], r"messages\[1\].content must be text"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], r"messages\[0\].content must be text"),
        ([{"role": "user", "content": 5}], "must be text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], r"content\[0\] must be"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], r"content\[0\] must be"),
        ([{"role": "user", "content": "x", "extra": object()}], "holds a object"),
        ([{"role": "user", "content": "x", "extra": float("nan")}], "holds a float"),
        ([{"role": "user", "content": "x", "extra": {1: 2}}], "holds a dict"),
        ([{"role": "assistant", "tool_calls": {}}], r"messages\[0\].tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [5]}], r"messages\[0\].tool_calls\[0\] must be an object"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], r"tool_calls\[0\].function must be an object"),
        ([{"role": "assistant", "function_call": "f"}], r"messages\[0\].function_call must be an object"),
    ],
)
def test_bad_messages_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render("x", messages)


def test_deep_values_are_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UserError, match="nested"):
        render("x", [{"role": "user", "content": "x", "extra": deep}])


def test_templates_do_not_change_messages() -> None:
    messages = [{"role": "user", "content": "x"}]
    render("{% set ns = namespace(m=messages) %}{% set ns.m = ns.m + [1] %}{{ ns.m | length }}", messages)
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("name", ["name", "tool_calls", "reasoning_content", "refusal"])
def test_fields_of_null_are_left_out_as_in_transformers(name: str) -> None:
    talk = Conversation(messages=[{"role": "user", "content": "x", name: None}])
    source = f"{{{{ '{name}' in messages[0] }}}}{{{{ messages[0].{name} is defined }}}}"
    assert reference(source, talk, add_generation_prompt=False) == "FalseFalse" == render(source, talk.messages)


@pytest.mark.parametrize("given", [["reasoning_content"], ["thinking"], ["reasoning"], ["reasoning", "thinking"], []])
def test_reasoning_has_every_name_as_in_transformers(given: list[str]) -> None:
    message = {"role": "assistant", "content": "x"} | {name: name.upper() for name in given}
    talk = Conversation(messages=[message])
    want = reference(SHOW.replace("tojson", "tojson(sort_keys=true)"), talk, add_generation_prompt=False)
    assert want is not None and shown([message]) == [json.loads(want)]


# -- text parts --------------------------------------------------------------------------------------------------------

ONE, TWO = {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
LOOP = "{% for p in PARTS %}[{{ p.text }}]{% endfor %}"
READS_PARTS = {
    "attribute": "{% for m in messages %}" + LOOP.replace("PARTS", "m.content") + "{% endfor %}",
    "item": LOOP.replace("PARTS", "messages[0]['content']"),
    "get": LOOP.replace("PARTS", "messages[0].get('content')"),
    "assigned": "{% set a = messages[0].content %}{% set b = a %}" + LOOP.replace("PARTS", "b"),
    "chosen": "{% set a = messages[0].content if messages else [] %}" + LOOP.replace("PARTS", "a or []"),
    "macro": "{% macro f(x, c) %}" + LOOP.replace("PARTS", "c") + "{% endmacro %}{{ f(1, messages[0].content) }}",
    "filtered": LOOP.replace("PARTS", "messages[0].content | selectattr('type', 'equalto', 'text')"),
    "slice": LOOP.replace("PARTS", "messages[0].content[0:]"),
    "map": "[{{ messages[0].content | map(attribute='text') | join('][') }}]",
}
READS_TEXT = {
    "printed": "{{ messages[0].content }}",
    "lines": "{% for line in messages[0].content.split('\\n') %}{{ line }}{{ '\\n' if not loop.last }}{% endfor %}",
    "test of kind": "{{ messages[0].content if messages[0].content is string else '' }}",
    "other list": "{{ messages[0].content }}{% for m in messages %}{% endfor %}",
}


@pytest.mark.parametrize("source", READS_PARTS.values(), ids=READS_PARTS.keys())
def test_templates_that_read_parts_get_them(source: str) -> None:
    messages = [{"role": "user", "content": [ONE, TWO]}]
    assert (
        render(source, messages)
        == "[a][b]"
        == reference(source, Conversation(messages=messages), add_generation_prompt=False)
    )


@pytest.mark.parametrize("source", READS_TEXT.values(), ids=READS_TEXT.keys())
def test_other_templates_get_one_text(source: str) -> None:
    assert render(source, [{"role": "user", "content": [ONE, TWO]}]) == "a\nb"


# -- tool calls --------------------------------------------------------------------------------------------------------


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    "arguments", [ARGUMENTS, "{}", ' {"a": [1e5, 1.0, "\\u00e4"]}\n', '{"b": 1, "a": {"c": null}}']
)
def test_arguments_of_calls_are_handed_over_as_objects(arguments: str) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call("{}"), call(arguments)]}
    sent = copy.deepcopy(message)
    (found,) = shown([message])
    assert found["tool_calls"] == [call({}), call(json.loads(arguments))]
    assert list(found["tool_calls"][1]["function"]["arguments"]) == list(json.loads(arguments))
    assert message == sent
    assert shown([{**message, "tool_calls": [call(json.loads(arguments))]}])[0]["tool_calls"] == found["tool_calls"][1:]


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"tool_calls": [call("")]}, {"tool_calls": [call({})]}),
        ({"tool_calls": [call(None)]}, {"tool_calls": [call({})]}),
        ({"tool_calls": [{"type": "custom", "custom": {"input": "x"}}]},) * 2,
        ({"tool_calls": [{"function": {"name": "f"}}]}, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}),
        (
            {"tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]},
            {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        ),
        (
            {"function_call": {"name": "f", "arguments": '{"a": 1}'}},
            {"function_call": {"name": "f", "arguments": {"a": 1}}},
        ),
    ],
)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": "text"}])
def test_calls_in_other_spellings(message: dict[str, Any], found: dict[str, Any], content: dict[str, Any]) -> None:
    head = {"role": "assistant"}
    assert shown([head | content | message]) == [head | {"content": content.get("content") or ""} | found]


def test_assistant_may_only_have_thought() -> None:
    assert shown([{"role": "assistant", "content": None, "reasoning_content": "hm"}])[0]["content"] == ""


BAD_ARGUMENTS = [
    *("[1]", '"x"', "1", "null", "{", "{'a': 1}", "city=Bonn", " ", "NaN", '{"a": NaN}', '{"a": Infinity}', 5, [1]),
    *("[" * 100_000, '{"a": ' * 70 + "1" + "}" * 70, '{"a": ' + "9" * 5000 + "}"),
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=range(len(BAD_ARGUMENTS)))
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    with pytest.raises(UserError, match=r"messages\[1\].tool_calls\[1\].function.arguments") as e:
        render("x", [*HI, {"role": "assistant", "tool_calls": [call("{}"), call(arguments)]}])
    assert e.value.exit_code == 2
    with pytest.raises(UserError, match=r"messages\[0\].function_call.arguments"):
        render("x", [{"role": "assistant", "function_call": {"name": "f", "arguments": arguments}}])


# -- tools and other content -------------------------------------------------------------------------------------------


def test_tools_reach_the_template_unchanged() -> None:
    assert json.loads(render("{{ tools | tojson }}", tools=TOOLS)) == TOOLS
    assert render("{{ tools is none }}") == render("{{ tools is none }}", tools=[]) == "True"


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("f", "NAME must be a list of objects"),
        ({"type": "function"}, "NAME must be a list of objects"),
        (["f"], r"NAME\[0\] must be an object"),
        ([{}, None], r"NAME\[1\] must be an object"),
        ([{"function": print}], r"NAME\[0\] holds a builtin"),
    ],
)
def test_bad_tools_are_refused(name: str, value: Any, message: str) -> None:
    given = {"tools": value} if name == "tools" else {"kwargs": {"documents": value}}
    with pytest.raises(UserError, match=message.replace("NAME", name)):
        render("{{ tools }}{{ documents }}", **given)


READS_NO_TOOLS = [
    "x",
    "{{ messages[0].tools }}{{ 'tools' }}",
    "{% set tools = 1 %}{{ tools }}",
    "{% macro f(tools) %}{{ tools }}{% endmacro %}{{ f(1) }}",
]


@pytest.mark.parametrize("source", READS_NO_TOOLS)
def test_content_that_the_template_never_reads_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="the chat template has no place for tools"):
        render(source, tools=TOOLS)
    with pytest.raises(UserError, match="the chat template has no place for documents"):
        render(source, kwargs={"documents": [{"text": "x"}]})
    assert render(source, tools=[], kwargs={"documents": None, "enable_thinking": False}) == render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools %}{{ tools | length }}{% endif %}",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools | length }}",
        "{% macro f() %}{{ tools | length }}{% endmacro %}{{ f() }}",
        "{% for m in messages %}{% block b scoped %}{{ tools | length }}{% endblock %}{% endfor %}",
    ],
)
def test_templates_that_read_tools_get_them(source: str) -> None:
    assert render(source, tools=TOOLS) == "2"


# -- named tokens, and the BOS -----------------------------------------------------------------------------------------

NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token", "image_token"]
ALL_NAMES = "".join(f"{{{{ {name} }}}}{{{{ {name} is defined }}}}|" for name in NAMES)
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder(template, **tokenizer_config)`: a byte-level tokenizer that puts <s> before plain text."""

    def make(template: str, **config: Any) -> Path:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        inner.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>", "<img>"])
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
        inner.save(str(tmp_path / "tokenizer.json"))
        names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": template} | config))
        return tmp_path

    return make


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pad_token": "<pad>", "unk_token": "<unk>"},
        {"pad_token": {"content": "<pad>", "__type": "AddedToken", "lstrip": False}, "sep_token": "</s>"},
        {"cls_token": "<s>", "mask_token": "<pad>", "extra_special_tokens": {"image_token": "<img>"}},
    ],
)
def test_named_tokens_are_those_of_transformers(folder: Folder, config: dict[str, Any]) -> None:
    path = folder(ALL_NAMES, **config)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(path))
    assert ChatTemplate.of(Tokenizer.from_dir(path)).render(HI) == theirs.apply_chat_template(HI, tokenize=False)


def test_another_template_gets_the_same_tokens(folder: Folder) -> None:
    tokenizer = Tokenizer.from_dir(folder("of the model"))
    assert ChatTemplate.of(tokenizer, "{{ bos_token }}{{ eos_token }}").render(HI) == "<s></s>"
    assert ChatTemplate.of(tokenizer).render(HI) == "of the model"


def test_tokens_that_are_not_named_are_empty() -> None:
    assert ChatTemplate("{{ bos_token + eos_token }}{{ pad_token }}x").render(HI) == "x"


def test_a_byte_order_mark_is_no_text() -> None:
    template = ChatTemplate("\ufeff{{ messages[0].content }}")
    assert template.render(HI) == "hi" and not template.source.startswith("\ufeff")


@pytest.mark.parametrize("template", ["hi", "{{ bos_token }}hi", "{{ bos_token }}{{ bos_token }}hi"])
def test_in_a_folder_the_template_alone_writes_the_bos(folder: Folder, template: str) -> None:
    path = folder(template)
    ours, theirs = Tokenizer.from_dir(path), PreTrainedTokenizerFast.from_pretrained(str(path))
    assert ours.encode("x") == theirs.encode("x") == [256, 87]
    want = theirs.apply_chat_template(HI, tokenize=True, return_dict=False)
    assert chat_ids(ours, ChatTemplate.of(ours), HI) == want


def test_in_a_gguf_file_the_bos_is_added_as_it_says_but_never_twice(smollm2_path: Path) -> None:
    says_no = Tokenizer.from_gguf(GGUFFile(smollm2_path).metadata)
    says_yes = Tokenizer.from_gguf(says_no.to_gguf_metadata() | {"tokenizer.ggml.add_bos_token": True})
    hi = says_no.encode("hi")
    for template, no, yes in [
        ("hi", hi, [1, *hi]),
        ("{{ bos_token }}hi", [1, *hi], [1, *hi]),
        ("{{ bos_token }}{{ bos_token }}hi", [1, 1, *hi], [1, 1, *hi]),
    ]:
        assert chat_ids(says_no, ChatTemplate.of(says_no, template), HI) == no
        assert chat_ids(says_yes, ChatTemplate.of(says_yes, template), HI) == yes


# -- through LLM -------------------------------------------------------------------------------------------------------


def test_chat_and_stream_hand_tools_to_the_template(tmp_path: Path) -> None:
    source = "{{ tools | length if tools else 0 }}{{ enable_thinking }}{{ messages[0].content }}"
    llm = LLM(write_tiny(tmp_path), draft="none", dtype="float32", chat_template=source)
    sampling = Sampling(temperature=0, max_tokens=1)

    def ids(text: str) -> Sequence[int]:
        return llm.tokenizer.encode(text)

    assert llm.encode_chat(HI) == ids("0hi")
    assert llm.encode_chat(HI, tools=TOOLS, enable_thinking=False) == ids("2Falsehi")
    assert list(llm.chat(HI, sampling, tools=TOOLS).prompt_token_ids) == ids("2hi")
    *_, last = llm.chat_stream(HI, sampling, tools=TOOLS, enable_thinking=True)
    assert last.result is not None and list(last.result.prompt_token_ids) == ids("2Truehi")
    llm.template = ChatTemplate.of(llm.tokenizer)
    for refused in (llm.encode_chat, llm.chat, llm.chat_stream):
        with pytest.raises(UserError, match="no place for tools"):
            refused(HI, tools=TOOLS)
