"""Tool calls: the grammar that allows them and the reader that finds them, for the formats of families that we load."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from grammars import fulfils
from tokenizers import AddedToken
from vocabularies import byte_level, save

from stretto.core.errors import UserError
from stretto.core.tree import Tree
from stretto.text.grammar.compiler import Compiler
from stretto.text.stream import Text
from stretto.text.tokenizer import Tokenizer
from stretto.text.tool_calls import Argued, Called, Part, Said, ToolCallReader
from stretto.text.tools import Tool, ToolFormat, find_format, read_tools, tools_grammar

TEMPLATES = {
    "hermes": "<tool_call>\n{{ call | tojson }}\n</tool_call>",
    "llama3": "<|start_header_id|>{{ '{\"name\": ' }}{{ '\"parameters\": ' }}",
    "mistral": "{{ '[TOOL_CALLS] [' }}",
    "tekken": "{{ '[TOOL_CALLS][' }}",
    "args": "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}",
    "granite": "{{ '<|tool_call|>' }}",
    "phi": "<|tool_call|>[]<|/tool_call|>",
    "lfm2": "<|tool_call_start|>[]<|tool_call_end|>",
    "gemma": "<start_function_call>call:f{}<end_function_call>",
}
FORMATS = {name: form for name, template in TEMPLATES.items() if (form := find_format(template)) is not None}
MARKS = sorted({mark for form in FORMATS.values() for mark in form.marks})
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where", "maxLength": 6, "pattern": "^[a-z]*$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
# What each format writes for get_weather(city="Köln, {", days=3) and now().
OUTPUTS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln, {", "days": 3}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Köln, {", "days": 3}}, '
    '{"name": "now", "arguments": {}}]',
    "tekken": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln, {", "days": 3}}, '
    '{"name": "now", "arguments": {}}]',
    "args": '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln, {", "days": 3}[TOOL_CALLS]now[ARGS]{}',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Köln, {", "days": 3}}, '
    '{"name": "now", "arguments": {}}]',
    "phi": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Köln, {", "days": 3}}, '
    '{"name": "now", "arguments": {}}]<|/tool_call|>',
    "lfm2": '<|tool_call_start|>[get_weather(city="Köln, {", days=3), now()]<|tool_call_end|>',
    "gemma": "<start_function_call>call:get_weather{city:<escape>Köln, {<escape>,days:3}<end_function_call>"
    "<start_function_call>call:now{}<end_function_call>",
}


def tokenizer_with(folder: Path, *, special: bool) -> Tokenizer:
    """A byte-level tokenizer that has the marks as special tokens, or as others that it adds."""
    inner = byte_level()
    inner.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in MARKS])
    return Tokenizer.from_dir(save(folder, inner, {"bos_token": "<s>", "eos_token": "<|im_end|>"}))


@pytest.fixture(scope="module", params=["special", "added"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with(tmp_path_factory.mktemp(request.param), special=request.param == "special")


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer)


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text beside the calls, and each call's name and arguments."""
    reader, text, calls = ToolCallReader(form), "", list[tuple[str, str]]()
    parts: list[Part] = [part for piece in pieces for part in reader.push(piece)]
    for part in [*parts, *reader.finish()]:
        match part:
            case Said(said):
                text += said
            case Called(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case Argued(index, more):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + more)
    assert reader.num_calls == len(calls)
    return text, calls


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(len(text) + 1)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


# -- formats -------------------------------------------------------------------------------------------------------


def test_templates_say_which_format_it_is() -> None:
    assert {name: form.name for name, form in FORMATS.items()} == {
        **{name: name for name in TEMPLATES}, "tekken": "mistral", "phi": "granite"
    }  # fmt: skip
    for other in ("plain text", "<tool_call>\n<function={{ name }}>", "<tool_call>{{ name }}<arg_key>", "<|channel|>"):
        assert find_format(other) is None
    assert find_format(None) is None


@pytest.mark.parametrize("name", ["qwen3_think", "granite_documents", "mistral_inst", "llama3_dates"])
def test_templates_of_families(name: str) -> None:
    source = (Path(__file__).parents[1] / "chat_templates" / f"{name}.jinja").read_text()
    form = find_format(source)
    assert form is not None
    assert form.name == {"q": "hermes", "g": "granite", "m": "mistral", "l": "llama3"}[name[0]]


@pytest.mark.parametrize("name", OUTPUTS)
def test_calls_are_read_however_the_output_is_cut(name: str) -> None:
    form, rng = FORMATS[name], random.Random(name)
    for before, behind in (("", ""), ("Let me see <too [ {.\n\n", "\n")):
        whole = before + OUTPUTS[name] + behind
        want = read(form, [whole])
        assert want[0] == before.rstrip()
        assert [name for name, _ in want[1]] == ["get_weather", "now"]
        assert json.loads(want[1][0][1]) == {"city": "Köln, {", "days": 3} and want[1][1][1] == "{}"
        assert read(form, list(whole)) == want
        for _ in range(20):
            assert read(form, cut(whole, rng)) == want


@pytest.mark.parametrize("name", OUTPUTS)
def test_arguments_are_prefixes_of_the_whole_ones(name: str) -> None:
    """At every moment what has been given out is the beginning of the real text, and never a completed guess."""
    whole = OUTPUTS[name]
    final = [arguments for _, arguments in read(FORMATS[name], [whole])[1]]
    reader, so_far = ToolCallReader(FORMATS[name]), ["", ""]
    for n, char in enumerate(whole):
        for part in reader.push(char):
            if isinstance(part, Argued):
                so_far[part.index] += part.text
                assert final[part.index].startswith(so_far[part.index]), whole[: n + 1]
    assert so_far == final
    if FORMATS[name].style in ("object", "list", "args"):
        assert so_far[0] in whole, "the model's own text"


def test_a_number_that_breaks_off_is_not_completed() -> None:
    for form, output, want in (
        (FORMATS["hermes"], '<tool_call>\n{"name": "f", "arguments": {"a": 12.', '{"a": 12.'),
        (FORMATS["hermes"], '<tool_call>\n{"name": "f", "arguments": {"a": tru', '{"a": tru'),
        (FORMATS["lfm2"], "<|tool_call_start|>[f(a=1, b=12", '{"a": 1'),
        (FORMATS["gemma"], "<start_function_call>call:f{a:1,b:<escape>x", '{"a": 1'),
    ):
        assert read(form, list(output)) == ("", [("f", want)])


def test_bare_calls_of_llama3() -> None:
    form = FORMATS["llama3"]
    call = '{"name": "now", "parameters": {"a": [1, "}"]}}'
    for output in (call, "<|python_tag|>" + call, "\n\n" + call):
        assert read(form, [output]) == read(form, list(output)) == ("", [("now", '{"a": [1, "}"]}')])
    for text in ("Hello, {you}.", '{"answer": 42}', "", "  ", "\n a"):
        assert read(form, [text]) == read(form, list(text)) == (text, [])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_call_stays_text(name: str) -> None:
    form = FORMATS[name]
    for text in ("Hello", "a <tool", " \n", form.opening[:-1], f"{form.opening} is no call", f"see {form.opening}"):
        found = read(form, list(text))
        assert found == read(form, [text])
        assert found[1] == [] and found[0].replace(" ", "") == text.replace(" ", "")


def test_fields_in_another_order() -> None:
    output = '<tool_call>{"arguments": {"a": {"b": "}"}}, "name": "f"}</tool_call> done'
    want = (" done", [("f", '{"a": {"b": "}"}}')])
    assert read(FORMATS["hermes"], [output]) == read(FORMATS["hermes"], list(output)) == want


def test_python_literals_become_json() -> None:
    output = (
        "<|tool_call_start|>[f(a=True, b=None, c=[1, {'x': \"it's\"}], d='a, (b', e=-1.5, g=weird)]<|tool_call_end|>"
    )
    ((_, arguments),) = read(FORMATS["lfm2"], list(output))[1]
    assert json.loads(arguments) == {
        "a": True, "b": None, "c": [1, {"x": "it's"}], "d": "a, (b", "e": -1.5, "g": "weird"
    }  # fmt: skip


# -- grammars ------------------------------------------------------------------------------------------------------


def spelled(compiler: Compiler, tokenizer: Tokenizer, form: ToolFormat, text: str, **options: Any) -> bool:
    """Whether a grammar of TOOLS takes `text` as the tokenizer splits it, and may end there."""
    grammar = tools_grammar(read_tools(TOOLS), form, tokenizer, **options)
    assert grammar is not None
    matcher = compiler.compile(grammar).matcher()
    ids = tokenizer.encode(text, add_bos=False)
    if matcher.legal(ids, Tree.chain(len(ids) + 1)) != list(range(1, len(ids) + 1)):
        return False
    matcher.accept(ids)
    return matcher.is_over or matcher.legal([min(tokenizer.eos_ids)], Tree.chain(2)) == [1]


@pytest.mark.parametrize("name", OUTPUTS)
def test_grammars_take_what_their_format_writes(name: str, compiler: Compiler, tokenizer: Tokenizer) -> None:
    form = FORMATS[name]
    both = OUTPUTS[name].replace("Köln, {", "koeln")
    first = {
        "hermes": both.partition('\n<tool_call>\n{"name": "now')[0],
        "args": both.rpartition("[TOOL_CALLS]")[0],
        "gemma": both.rpartition("<start_function_call>")[0],
    }.get(name, both.replace(', {"name": "now", "arguments": {}}', "").replace(", now()", ""))
    wrong = first.replace("days", "dayz")
    assert first != both and wrong != first

    def takes(text: str, **options: Any) -> bool:
        return spelled(compiler, tokenizer, form, text, **options)

    for choice in ("auto", "required"):
        assert takes(both, choice=choice) and takes(first, choice=choice)
        assert takes(first, choice=choice, parallel=False) and not takes(wrong, choice=choice)
        assert not takes(both, choice=choice, parallel=False)
    assert takes(first, choice="get_weather") and not takes(first, choice="now") and not takes(both, choice="now")
    assert takes("Hello, you {} there!\n", choice="auto") and not takes("Hello", choice="required")
    assert takes("I see. " + first, choice="auto") and not takes("I see. " + first, choice="required")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("choice", ["required", "get_weather", "auto"])
def test_whatever_a_grammar_allows_is_read_as_calls_of_its_tools(
    name: str, choice: str, compiler: Compiler, tokenizer: Tokenizer
) -> None:
    """Random walks through the grammar of each format: every text is calls whose arguments fulfil their schemas."""
    form, rng = FORMATS[name], random.Random(name + choice)
    grammar = tools_grammar(read_tools(TOOLS), form, tokenizer, choice=choice)
    assert grammar is not None
    city = {"type": "string", "maxLength": 6} if name == "gemma" else WEATHER["properties"]["city"]  # has no pattern
    schemas, found = {"get_weather": WEATHER | {"properties": WEATHER["properties"] | {"city": city}}}, 0
    for _ in range(12):
        matcher, text = compiler.compile(grammar).matcher(), Text(tokenizer, (), shows=grammar.shows, continues=False)
        said = ""
        for step in range(150):
            mask = matcher.allowed()
            allowed = [t for t in range(tokenizer.vocab_size) if mask[t // 8] >> t % 8 & 1]
            if matcher.is_over or (step > 40 and tokenizer.eos_ids & set(allowed)):
                break
            opening = [t for t in allowed if tokenizer.token_text(t) == form.opening]
            token = opening[0] if opening and choice == "auto" else rng.choice(allowed)
            if token in tokenizer.eos_ids:
                break
            matcher.accept([token])
            said += text.push(token)[0]
        else:
            continue  # an argument without end
        _, calls = read(form, cut(said + text.finish(), rng))
        assert calls or choice == "auto", said
        assert len(calls) == 1 or choice != "get_weather"
        for tool, arguments in calls:
            found += 1
            if tool == "get_weather":
                assert fulfils(arguments, schemas[tool]), said
            else:
                assert isinstance(json.loads(arguments), dict)
    assert found > 2


def test_strict_tools_are_enforced_or_refused(compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for is_strict in (False, True):
        grammar = tools_grammar([Tool("f", schema, is_strict)], FORMATS["hermes"], tokenizer, choice="required")
        assert grammar is not None
        if is_strict:
            with pytest.raises(UserError, match="uniqueItems"):
                compiler.compile(grammar)
        else:
            compiler.compile(grammar)
    strict = Tool("f", WEATHER, is_strict=True)
    with pytest.raises(UserError, match="pattern"):
        tools_grammar([strict], FORMATS["gemma"], tokenizer)
    for form in (FORMATS["hermes"], FORMATS["lfm2"]):
        assert tools_grammar([strict], form, tokenizer) is not None


def test_choices_and_tools_that_are_none(tokenizer: Tokenizer) -> None:
    assert tools_grammar(read_tools(TOOLS), FORMATS["hermes"], tokenizer, choice="none") is None
    with pytest.raises(UserError, match="no tool has that name"):
        tools_grammar(read_tools(TOOLS), FORMATS["hermes"], tokenizer, choice="nothing")
    for tools, why in (
        ([], "0 tools"),
        ([*TOOLS] * 65, "130 tools"),
        ([*TOOLS, TOOLS[0]], "two tools are named get_weather"),
        ([{"type": "web_search"}], "no function"),
        ([{"function": {"name": "a b"}}], "has the name"),
        ([{"function": {"name": "a", "parameters": 3}}], "must be a JSON schema"),
    ):
        with pytest.raises(UserError, match=why):
            read_tools(tools)
    with pytest.raises(UserError, match="must be object"):
        tools_grammar([Tool("f", {"type": "string"})], FORMATS["hermes"], tokenizer)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


DAMAGED: tuple[dict[str, Any], ...] = (
    {"properties": [1]}, {"properties": None}, {"required": None}, {"required": [["a"]]}, {"required": 3},
    {"type": None}, {"type": ["object"]}, {"properties": {"a": None}}, {"properties": {"a": nested(5000)}},
    {"$defs": 3, "properties": {"a": {"$ref": "#/$defs/b"}}},
    *({"properties": {"a": {"type": "string", key: value}}} for key, value in (
        ("enum", None), ("enum", 3), ("minLength", "1"), ("minLength", -1), ("maxLength", None), ("maxLength", 1.5))),
    {"properties": {"a": {"type": {"b": 1}}}},
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_schema_is_an_error_of_whoever_sent_it(name: str, tokenizer: Tokenizer) -> None:
    """Some formats leave a keyword to the model; none may fail in another way."""
    compiler, refused = Compiler(tokenizer), 0
    for schema in DAMAGED:
        try:
            tools = read_tools([{"function": {"name": "f", "parameters": schema, "strict": True}}])
            grammar = tools_grammar(tools, FORMATS[name], tokenizer, choice="required")
            assert grammar is not None
            compiler.compile(grammar)
        except UserError:
            refused += 1
    assert refused >= 8


def test_descriptions_do_not_count(tokenizer: Tokenizer) -> None:
    """Agents send tools whose descriptions alone are larger than a grammar may be."""
    schema = {"type": "object", "description": "x" * 70_000, "properties": {
        "description": {"type": "string", "default": "y" * 70_000}}}  # fmt: skip
    grammar = tools_grammar([Tool("f", schema)], FORMATS["hermes"], tokenizer)
    assert grammar is not None and len(grammar.text) < 1000 and '"description"' in grammar.text
