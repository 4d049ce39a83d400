"""Chat templates: equal to transformers on harmless ones, stopped on the others."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from stretto.convert.gguf_ import GGUFFile
from stretto.core.errors import ModelFileError, UserError
from stretto.text import chat
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.meter import Meter, Overrun
from stretto.text.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_chats.json").read_text())
HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "f<x>", "description": "ü & 'q'", "parameters": {"type": "object", "properties": {"a": {}}}},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": 'Be <terse> & "kind".'},
    {"role": "user", "content": "  Grüße 👩🏽‍💻  "},
    {
        "role": "assistant",
        "content": "<think>\nhm\n</think>\n\nyes",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [None, 2.5]}}}
        ],
    },
    {"role": "tool", "content": "42", "tool_call_id": "1"},
    {"role": "user", "content": "and?\n"},
]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(smollm2_path).metadata)


def render(source: str, messages: Any = HI, **kwargs: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **kwargs)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_embedded_model_equals_transformers(smollm2: Tokenizer, case: dict[str, Any]) -> None:
    template = ChatTemplate.of(smollm2)
    assert template.render(case["messages"]) == case["prompt"]
    assert template.render(case["messages"], add_generation_prompt=False) == case["closed"]
    assert smollm2.decode(chat_ids(smollm2, template, case["messages"]), skip_special=False) == case["prompt"]


# Each line uses other parts of what published templates use.
FEATURES = {
    "whitespace": "{% for m in messages %}\n  {%- if loop.first %}\n    "
    "{{ m.role }}\n  {% endif -%}\n  x\n{% endfor %}\n",
    "lstrip": "  {% if true %}\n    a\n  {% endif %}\n  b {# c #}\n",
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}"
    "{{ loop.previtem.role if loop.previtem is defined }}"
    "{{ loop.cycle('a', 'b') }}{% if loop.last %}!{% endif %}{% else %}none{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{% if loop.index0 == 3 %}"
    "{% break %}"
    "{% endif %}{{ m['role'] }}{% endfor %}",
    "reverse": "{% for m in messages[::-1] %}{{ m.role }}{% endfor %}{% for m in messages | reverse %}"
    "{{ m.role[0] }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "macro": "{% macro show(m, mark='*') -%}{{ mark }}{{ m.content | trim }}{{ caller() if caller }}{%- endmacro %}"
    "{% for m in messages %}{{ show(m) }}{{ show(m, mark='-' * 3) }}{% endfor %}{% call show(messages[0]) %}in"
    "{% endcall %}",
    "tojson": "{{ tools | tojson }}{{ tools | tojson(indent=2) }}"
    "{{ messages[2].tool_calls[0].function.arguments | tojson }}"
    "{{ {'b': 1, 'a': 'é<'} | tojson(sort_keys=true, separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=true) }}",
    "split": "{% for m in messages %}{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
    "{{ m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] }}{% endif %}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='content') | list }}"
    "{{ (messages | first).role }}"
    "{{ 'a b' | title }}{{ 'x' | upper }}{{ [3, 1, 2] | sort | last }}{{ none | default('d', true) }}"
    "{{ '7' | int + 1 }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'k': 'v'} | items | list }}{{ [1, 2] | sum }}{{ 2.567 | round(1) }}"
    "{{ [1, 1] | unique | list }}"
    "{{ 'a\nb\n\nc' | indent(3) }}{{ 'a\nb' | indent(2, true) }}{{ 'abab' | replace('a', 'x', 1) }}"
    "{{ '%s-%05.1f' | format('q', 2.25) }}",
    "strings": "{{ 'a-b'.replace('-', '+') }}{{ ', '.join(['p', 'q']) }}{{ 'AbC'.lower() }}"
    "{{ '{}:{n:>4}'.format('x', n=7) }}"
    "{{ 'a' ~ 1 ~ none ~ 2.5 }}{{ 'abc'[1:] }}{{ 'abc'[-1] }}{{ '%d%%' % 5 }}{{ '%s %s' % ('a', 'b') }}"
    "{{ 'x'.startswith(('x', 'y')) }}",
    "tests": "{{ messages[0].content is string }}{{ messages is iterable }}{{ {} is mapping }}{{ x is defined }}"
    "{{ 3 is number }}"
    "{{ tools is not none }}{{ messages[0].nope is undefined }}{{ 4 is divisibleby 2 }}{{ true is boolean }}",
    "set block": "{% set x %}a{{ bos_token }}{% endset %}{{ x }}{% filter upper %}b"
    "{{ eos_token }}{% endfilter %}{% with y=1 %}{{ y }}{% endwith %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}",
    "dicts": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('nope', 'z') }}"
    "{{ dict(a=1) }}"
    "{% for k in {'p': 1, 'q': 2} %}{{ k }}{% endfor %}{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{{ [1] + [2] }}"
    "{{ [0] * 3 }}",
    "recursive": "{% for x in [[1, [2]], [3]] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}"
    "{{ x }}{% endif %}{% endfor %}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 9, 3) | list }}{{ 7 // 2 }}{{ 7 % 4 }}"
    "{{ 2 ** 5 }}{{ -3 * 2 }}",
    "block": "{% block a %}in {{ messages[0].role }}{% endblock %}{{ self.a() }}",
    "kwargs": "{{ enable_thinking }}{{ documents }}{{ add_generation_prompt }}",
}


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES.keys())
def test_templates_equal_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source += "{{ tools | length }}"  # a template that never reads them is not given any
    theirs, _ = render_jinja_template(
        conversations=[TALK],
        tools=[TOOL],
        documents=None,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
        enable_thinking=False,
    )
    assert render(source, TALK, tools=[TOOL], kwargs={"enable_thinking": False}) == theirs[0]


def test_time_is_the_callers() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render(HI) == "26 Jul 2024"


def test_the_templates_own_refusal_is_shown() -> None:
    with pytest.raises(UserError, match="roles must alternate") as e:
        render("{{ raise_exception('roles must alternate') }}")
    assert e.value.exit_code == 2


# --- Arguments by name


@pytest.mark.parametrize(
    "name", ["tokenize", "add_generation_prompt", "messages", "chat_template", " meter", "bos_token"]
)
def test_only_known_arguments_reach_the_template(name: str) -> None:
    with pytest.raises(UserError, match="unknown chat template argument"):
        render("x", kwargs={name: True})


def test_models_without_a_template_are_refused(smollm2: Tokenizer) -> None:
    fields = {k: v for k, v in smollm2.to_gguf_metadata().items() if k != "tokenizer.chat_template"}
    bare = Tokenizer.from_gguf(fields)
    with pytest.raises(UserError, match="--chat-template FILE"):
        chat_ids(bare, ChatTemplate.of(bare), HI)


# --- Templates that would run for ever or fill memory

DOUBLE = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"
BOMBS = {
    "range": "{% for a in range(10**9) %}{% endfor %}",
    "product": "{{ 'a' * 10**9 }}",
    "products": "{{ 'a' * 10**5 * 10**5 }}",
    "list product": "{% set x = [1] * 10**9 %}",
    "power": "{{ 2 ** (10**8) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled ~": DOUBLE % ("'ab'", "ns.x ~ ns.x"),
    "doubled +": DOUBLE % ("'ab'", "ns.x + ns.x"),
    "doubled list": DOUBLE % ("[1]", "ns.x + ns.x"),
    "doubled join": DOUBLE % ("'ab'", "[ns.x, ns.x] | join"),
    "doubled format": DOUBLE % ("'ab'", "'%s%s' % (ns.x, ns.x)"),
    "doubled str.format": DOUBLE % ("'ab'", "'{0}{0}'.format(ns.x)"),
    "nested list": DOUBLE % ("[1]", "[ns.x, ns.x]"),
    "nested tuple": DOUBLE % ("[1]", "(ns.x, ns.x)"),
    "nested dict": DOUBLE % ("[1]", "{'a': ns.x, 'b': ns.x}"),
    "nested dict()": DOUBLE % ("[1]", "dict(a=ns.x, b=ns.x)"),
    "nested by product": DOUBLE % ("[1]", "[ns.x] * 2"),
    "nested by map": DOUBLE % ("[1]", "[ns.x, ns.x] | map('list') | list"),
    "nested, compared": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}"
    "{% endfor %}{{ ns }}",
    "set block": DOUBLE.replace(
        "{%% set ns.x = %s %%}", "{%% set y %%}{{ ns.x }}%s{{ ns.x }}{%% endset %%}{%% set ns.x = y %%}"
    )
    % ("'ab'", ""),
    "template text": "{% set y %}{% for i in range(100000) %}" + "x" * 10_000 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "mapped replace": "{{ (['a' * 1000] * 100000) | map('replace', 'a', 'b' * 1000) | list | length }}",
    "join": "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "join filter": "{{ (['b'] * 100000) | join('a' * 100000) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "named width": "{{ '%(a%(b))999999999d' % {'a%(b)': 1} }}",
    "star width": "{{ '%*d' % (1000000000, 1) }}",
    "precision": "{{ '%.999999999f' | format(1.0) }}",
    "str.format width": "{{ '{:1000000000}'.format(1) }}",
    "nested width": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "indent": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "strip": "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
    "trim": "{{ ('a' * 1000000) | trim('b' * 1000000 ~ 'a') }}",
    "slices": "{% set s = 'a' * 8000000 %}{% set ns = namespace(x=[]) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + [s[1:]] %}{% endfor %}",
    "round": "{{ 1 | round(1000000000, 'ceil') }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "sum of lists": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop recursion": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_stopped(source: str) -> None:
    """By what they would make, before they make it: the clock and the machine's memory are not the first to notice."""
    with pytest.raises(UserError) as e:
        render(source)
    assert e.value.why and e.value.exit_code == 2
    assert "MemoryError" not in e.value.why and "longer than" not in e.value.why


def test_slices_are_charged() -> None:
    """Deep calls may each keep a copy of a long text: that ends by its memory, before the recursion does."""
    with pytest.raises(UserError, match="128 MiB of values"):
        render("{% macro f(s) %}{{ f(s[1:]) }}{% endmacro %}{{ f('a' * 8000000) }}")


SLOW = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "loops without calls": "{% set x = [1] * 90000 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(90000) %}{% for b in range(90000) if false %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "generators": "{% for a in range(90000) %}{{ range(90000) | map('string') | select('none') | list }}{% endfor %}",
    "calls": "{% macro g() %}{{ caller() }}{{ caller() }}{% endmacro %}{% macro f(n) %}{% if n %}"
    "{% call g() %}{{ f(n - 1) }}{% endcall %}{% endif %}{% endmacro %}{{ f(25) }}",
    "loops in macros": "{% macro f(n) %}{% if n %}{% for i in '12' %}"
    "{{ f(n - 1) }}{% endfor %}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "loops of loops": "{% for x in [[1, 2]] * 90000 recursive %}"
    "{{ loop([[1]] * 90000) if loop.depth < 9 }}{% endfor %}",
}


@pytest.mark.parametrize("source", SLOW.values(), ids=SLOW.keys())
def test_endless_templates_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.1)
    with pytest.raises(UserError, match="longer than"):
        render(source)


def test_meter_reads_the_clock() -> None:
    now = [0.0]
    meter = Meter(2.0, clock=lambda: now[0])
    now[0] = 2.0
    meter.tick()
    now[0] = 2.1
    with pytest.raises(Overrun, match="longer than 2 s"):
        meter.tick()


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__init__ }}",
    "{{ (1).__class__.__base__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__func__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ range.__self__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner }}{{ lipsum.__globals__ }}",
    "{{ 'a'.format.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ ['x'] | map(attribute='__class__') | first }}",
    "{{ namespace.__init__ }}",
    "{{ dict.mro() }}",
    "{{ dict.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ 'a'.encode() }}",
    "{{ (1).to_bytes(9, 'big') }}",
    "{{ loop }}{{ meter }}{{ environment }}{{ context }}{{ caller }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ messages | attr('__class__') }}",
    "{{ 1 | pprint }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_templates_cannot_reach_python(source: str) -> None:
    """They are refused, or what they ask for is undefined and prints as nothing."""
    try:
        found = render(source)
    except UserError:
        return
    assert found == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace() %}{% set ns._Namespace__attrs = 1 %}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace({'__html__': 1}) %}",
    ],
)
def test_namespaces_hold_no_private_names(source: str) -> None:
    with pytest.raises(UserError, match="a namespace cannot hold"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ 'a' | nofilter }}", "{% nosuch %}", "{{ " + "(" * 9000, "{% for a in b %}" * 50]
)
def test_broken_templates_are_refused(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate(source)


def test_long_conversations_fit() -> None:
    """What is bounded leaves room for real use: 4,096 messages copied into a list and walked twice."""
    source = (
        "{% set ns = namespace(m=[]) %}{% for m in messages %}{% set ns.m = ns.m + [m] %}{% endfor %}"
        "{% for m in ns.m %}{{ m.role ~ ': ' ~ (m.content | trim) }}\n{% endfor %}"
    )
    talk = [{"role": "user", "content": "word " * 190}] * 4096
    assert render(source, talk) == ("user: " + ("word " * 190).strip() + "\n") * 4096
