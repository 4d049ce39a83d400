"""What chat templates call: the same in every scope as in transformers, and bounded."""

from typing import Any

import pytest
from chat_templates import NOW, SPECIAL_TOKENS, Conversation, reference, rendered
from jinja2 import pass_context
from jinja2.runtime import Context

from stretto.core.errors import UserError
from stretto.text import chat, meter
from stretto.text.chat import ChatTemplate
from stretto.text.sandbox import TemplateEnvironment
from stretto.text.template_filters import before_method

HI = [{"role": "user", "content": " a-b\r\n<a> "}, {"role": "assistant", "content": "xax"}]
TEXT = "messages[0].content"
CALLS = {
    "replace": f"{TEXT}.replace('a', 'b')",
    "replace once": f"{TEXT}.replace('a', 'b', 1)",
    "join": "', '.join(['x', 'y'])",
    "join a generator": "'+'.join(messages | map(attribute='role'))",
    "strip": f"{TEXT}.strip()",
    "strip characters": f"{TEXT}.lstrip(' a').rstrip('> ').strip('b')",
    "format": "'{}:{n:>4}{!r}{m.role}'.format('x', 'y', n=7, m=messages[1])",
    "format_map": "'{a}'.format_map({'a': 1})",
    "split": f"{TEXT}.split('-', maxsplit=1)[0].upper()",
    "startswith": f"{TEXT}.startswith((' a', 'z')) and not {TEXT}.endswith('q')",
    "filter": f"{TEXT} | replace('a', 'b') | trim | indent(2)",
    "items": "messages[1].items() | map('join', '=') | join(';')",
    "get": "messages[0].get('nope', 'default') ~ {'k': [1, 2]}.get('k').index(2)",
    "range": "range(1, 9, 3) | list",
    "dict": "dict(a=1, **{'b': 2})",
    "namespace": "namespace(a=1, b=namespace({'c': 'd'})).b.c",
    "date": "strftime_now('%-d.%m.%Y') ~ strftime_now(format='%H')",
    "macro": "show('x', 2, mark='-', extra='!')",
    "macro in a macro": "show(show('y', mark='+'))",
    "markup replace": "('<l>' | safe).replace('l', '<&>')",
    "markup join": "('<' | safe).join(['&', 'a', '<' | e])",
    "markup strip": "('<< a >>' | safe).strip('<>') + '<'",
    "markup format": "('<{}>' | safe).format('<') ~ (('<%s>' | safe) % '<')",
}
PRELUDE = (
    "{% macro show(x, y='?', mark='*') %}{{ mark }}{{ x }}{{ y }}{{ kwargs.extra }}"
    "{{ caller() if caller }}{% endmacro %}"
)
SCOPES = {
    "template": "{{ CALL }}",
    "loop": "{% for m in messages %}{{ CALL }}{% endfor %}",
    "loop in a loop": "{% for m in messages %}{% for i in [1] %}{{ CALL }}{% endfor %}{% endfor %}",
    "recursive loop": "{% for m in [[1], []] recursive %}{{ CALL }}{{ loop(m) if m is iterable }}{% endfor %}",
    "condition of a loop": "{% for m in messages if (CALL) is defined %}{{ m.role }}{% endfor %}",
    "loop over": "{% for m in [CALL] %}{{ m }}{% endfor %}",
    "else of a loop": "{% for m in [] %}{% else %}{{ CALL }}{% endfor %}",
    "if in a loop": "{% for m in messages %}{% if loop.first %}{{ CALL if true }}{% endif %}{% endfor %}",
    "set in a loop": "{% for m in messages %}{% set v = CALL %}{{ v }}{% endfor %}",
    "set block": "{% for m in messages %}{% set v %}{{ CALL }}{% endset %}{{ v }}{% endfor %}",
    "namespace in a loop": "{% set x = namespace() %}{% for m in messages %}{% set x.v = CALL %}{% endfor %}{{ x.v }}",
    "block": "{% block b %}{% set v = 1 %}{{ CALL }}{% endblock %}",
    "scoped block in a loop": "{% for m in messages %}{% block b scoped %}{{ CALL }}{{ m }}{% endblock %}{% endfor %}",
    "loop in a block": "{% block b %}{% for m in messages %}{{ CALL }}{% endfor %}{% endblock %}{{ self.b() }}",
    "macro": "{% macro f() %}{{ CALL }}{% endmacro %}{{ f() }}",
    "loop in a macro": "{% macro f() %}{% for m in messages %}{{ CALL }}{% endfor %}{% endmacro %}{{ f() }}",
    "default in a macro": "{% for m in messages %}{% macro f(v=CALL) %}{{ v }}{% endmacro %}{{ f() }}{% endfor %}",
    "call block in a loop": "{% for m in messages %}{% call show('c') %}{{ CALL }}{% endcall %}{% endfor %}",
    "arguments of a call block": "{% for m in messages %}{% call show(CALL, mark='~') %}c{% endcall %}{% endfor %}",
    "with": "{% for m in messages %}{% with v = CALL %}{{ v }}{% endwith %}{% endfor %}",
    "filter block": "{% for m in messages %}{% filter replace('a', 'c') %}{{ CALL }}{% endfilter %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ CALL }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
def test_calls_give_what_they_give_in_transformers(scope: str) -> None:
    every = " ~ '\n' ~ ".join(f"'{name}: ' ~ ({call})" for name, call in CALLS.items())
    source, talk = PRELUDE + scope.replace("CALL", every), Conversation(messages=HI)
    want, got = (render(source, talk, add_generation_prompt=False) for render in (reference, rendered))
    assert want is not None and got is not None
    assert got.split("\n") == want.split("\n")


@pytest.mark.parametrize("call", ["'a'.replace('a', 'b')", "'a'.join(['b'])", "'a'.strip()", "('a' | safe).upper()"])
def test_methods_take_no_block(call: str) -> None:
    source, talk = f"{{% call {call} %}}x{{% endcall %}}", Conversation(messages=HI)
    assert reference(source, talk, add_generation_prompt=False) is None
    assert rendered(source, talk, add_generation_prompt=False) is None


@pytest.mark.parametrize(
    ("name", "named"), [("join", "seq"), ("replace", "new"), ("strip", "chars"), ("rstrip", "chars")]
)
def test_charged_methods_take_no_names(name: str, named: str) -> None:
    """A MarkupSafe that takes them by name would leave them uncharged."""
    with pytest.raises(TypeError, match="by position"):
        before_method(meter.Meter(60.0), "a", name, (), {named: "b" * 1000})


# -- namespaces --------------------------------------------------------------------------------------------------------

NAMESPACES = {
    "as a message": "{% set s = namespace(role='system', content='S') %}{% for m in [s] + messages %}"
    "{{ m.role }}:{{ m['content'] | length }};{% endfor %}",
    "among messages, by attribute": "{% set all = messages + [namespace(role='tool', content='T')] %}"
    "{{ all | map(attribute='role') | join(',') }}{{ (all | selectattr('role', 'equalto', 'tool') | first).content }}",
    "holds itself": "{% set ns = namespace(n=1) %}{% set ns.me = ns %}{% set ns.all = [ns, (ns, {'k': ns})] %}"
    "{{ ns.me.all[1][1].k.me.n }}{{ ns in ns.all }}{{ ns.all | length }}{{ ns == ns.me }}",
    "changed in a list": "{% set l = [namespace(n=0)] %}{% for m in messages %}{% set x = l[0] %}"
    "{% set x.n = x.n + 1 %}{% endfor %}{{ l[0].n }}{{ l | map(attribute='n') | sum }}",
    "is no mapping": "{% set x = namespace(a=1) %}{{ x is mapping }}{{ x is iterable }}{{ [x] is iterable }}"
    "{{ x.b is defined }}",
}


@pytest.mark.parametrize("source", NAMESPACES.values(), ids=NAMESPACES.keys())
def test_namespaces_in_lists_equal_transformers(source: str) -> None:
    talk = Conversation(messages=HI)
    want = reference(source, talk, add_generation_prompt=False)
    assert want and rendered(source, talk, add_generation_prompt=False) == want


# Sixty namespaces, each of which is put twice into a list of the one before it, after all of them were made.
LINKED = (
    "{% set root = namespace(l=[]) %}{% for i in range(60) %}{% set root.l = root.l + [namespace(x=1)] %}{% endfor %}"
    "{% for n in root.l %}{% if not loop.last %}{% set n.x = [loop.nextitem, loop.nextitem] %}{% endif %}{% endfor %}"
    "{% set x = root.l[0].x %}"
)
NAMESPACE_BOMBS = {
    "grown list": (
        "{% set n = namespace() %}{% set n.x = [n] %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
        "a value of more than 16 MiB",
    ),
    "grown list of itself": (
        "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x + [ns] %}{% endfor %}",
        "a value of more than 16 MiB",
    ),
    "printed": (LINKED + "{{ x }}", "cannot be printed"),
    "printed itself": ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "cannot be printed"),
    "joined by ~": (LINKED + "{{ (x ~ '') | length }}", "cannot be printed"),
    "as text": (LINKED + "{{ x | string | length }}", "cannot be printed"),
    "joined": (LINKED + "{{ x | join | length }}", "cannot be printed"),
    "in a format": (LINKED + "{{ ('%s' % (x,)) | length }}", "cannot be printed"),
    "in format()": (LINKED + "{{ '{}'.format(x) | length }}", "cannot be printed"),
    "as JSON": (LINKED + "{{ x | tojson }}", "not JSON serializable"),
    "escaped": (LINKED + "{{ x | e | length }}", "cannot be printed"),
}


@pytest.mark.parametrize(("source", "why"), NAMESPACE_BOMBS.values(), ids=NAMESPACE_BOMBS.keys())
def test_namespaces_stay_bounded(source: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        ChatTemplate(source).render(HI)


# Values that weigh little and lead to much: what reaches into them is charged for what it finds there.
HEAVY = "{% set a = namespace(x='y' ~ 'x' * 5000000) %}{% set b = namespace(x='x' * 5000000) %}{% set l = [a, b] * 9 %}"
REACHING = {
    "format": HEAVY + "{{ ('{0.x}' * 9).format(a) | length }}",
    "format a list": HEAVY + "{{ ('{0[0].x}' * 9).format(l) | length }}",
    "format_map": HEAVY + "{{ ('{k.x}' * 99).format_map({'k': a}) | length }}",
    "format and represent": HEAVY + "{{ ('{0.x!r}' * 99).format(a) | length }}",
    "markup format": HEAVY + "{{ ('{0.x}' | safe).format(a) | length }}",
    "format a loop": "{% for m in ['x' * 5000000, 1] %}{{ ('{0.previtem}' * 99).format(loop) | length }}{% endfor %}",
    "sort": HEAVY + "{{ l | sort(attribute='x') | length }}",
    "sort by two": HEAVY + "{{ l | sort(false, true, 'y,x') | length }}",
    "sort reversed": HEAVY + "{{ (l | sort(false, attribute='x', case_sensitive=true)) | length }}",
    "min": HEAVY + "{{ (l | min(attribute='x')).y }}",
    "max": HEAVY + "{{ (l | max(false, 'x')).y }}",
    "unique": HEAVY + "{{ l | unique(attribute='x') | list | length }}",
    "groupby": HEAVY + "{{ l | groupby('x') | length }}",
    "selectattr": HEAVY + "{{ l | selectattr('x', 'equalto', 'x' * 5000000) | list | length }}",
    "rejectattr": HEAVY + "{{ l | rejectattr('x', 'in', ['x' * 5000000]) | list | length }}",
    "sort loops": "{% for m in ['x' * 5000000, 1] %}{{ ([loop] * 9) | sort(attribute='previtem') }}{% endfor %}",
    "items": "{% set n = namespace(x={'k': 1}) %}{% for i in range(60) %}"
    "{% set n.x = {'a': n.x.items(), 'b': n.x.items()} %}{% endfor %}{{ n.x }}",
    "values": "{% set n = namespace(x={'k': 1}) %}{% for i in range(60) %}"
    "{% set n.x = {'a': n.x.values(), 'b': n.x.values()} %}{% endfor %}{{ n.x }}",
    "keys": "{% set d = {('a' * 9000000): 1} %}{{ [d.keys(), d.keys()] | string | length }}",
    "bound methods": "{{ [(('a' * 8000000) | safe).upper] * 99 }}",
}


@pytest.mark.parametrize("source", REACHING.values(), ids=REACHING.keys())
def test_what_values_lead_to_is_charged(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 60.0)
    with pytest.raises(UserError, match=r"a value of more than 16 MiB|more than 128 MiB of values"):
        ChatTemplate(source).render(HI)


@pytest.mark.parametrize("form", ["('{0.x}' * 99).format(a)", "('{k.x!r}' * 99).format_map({'k': a})"])
def test_fields_are_charged_before_they_are_written(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_CHARGES", 16 << 20)
    source = "{% set a = namespace(x='x' * 1000000) %}{{ FORM | length }}".replace("FORM", form)
    with pytest.raises(UserError, match="16 MiB of values"):  # not the one value, which would have 99 MB
        ChatTemplate(source).render(HI)


SORTED = {
    "sort": "messages | sort(attribute='content,role') | map(attribute='role') | join",
    "sort reversed": "messages | sort(reverse=true, attribute='role') | map(attribute='role') | join",
    "min": "(messages | min(attribute='role')).role ~ (messages | max(false, 'content')).role",
    "unique": "(messages + messages) | unique(attribute='role') | list | length",
    "groupby": "messages | groupby('role') | map(attribute='grouper') | join(',')",
    "groupby with default": "messages | groupby('nope', default='z', case_sensitive=true) | list | length",
    "selectattr": "messages | selectattr('role', 'in', ['user']) | list | length",
    "selectattr alone": "messages | map(attribute='nope') | list | length ~ messages | selectattr('nope') | list",
    "rejectattr": "messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list",
    "of nothing": "none | selectattr('x') | list | length ~ nope | rejectattr('x', 'eq', 1) | list | length",
    "of a generator": "messages | map('dictsort') | sort(attribute='1.1') | length",
    "values themselves": "[3, 1, 2, 1] | unique | sort(true) | join ~ ['b', 'A'] | min ~ ['b', 'A'] | max",
}


@pytest.mark.parametrize("call", SORTED.values(), ids=SORTED.keys())
def test_filters_by_attribute_equal_transformers(call: str) -> None:
    source, talk = f"{{{{ {call} }}}}", Conversation(messages=HI)
    want = reference(source, talk, add_generation_prompt=False)
    assert want and rendered(source, talk, add_generation_prompt=False) == want


def test_copies_in_namespaces_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_CHARGES", 1 << 20)
    source = "{% set ns = namespace() %}{% for i in range(900) %}{% set ns.x = namespace(big, p=ns.x) %}{% endfor %}"
    big = "{% set big = messages[0].big %}"
    talk = [{"role": "user", "content": "", "big": {str(i): i for i in range(100)}}]
    with pytest.raises(UserError, match="1 MiB of values"):
        ChatTemplate(big + source).render(talk)
    assert ChatTemplate(source.replace("big, ", "")).render(talk) == ""


def test_comparing_namespaces_does_not_walk_into_them() -> None:
    source = LINKED + LINKED.replace("root", "other").replace("set x =", "set y =") + "{{ x == y }}{{ x in [y, x] }}"
    assert ChatTemplate(source).render(HI) == "FalseTrue"


def test_long_chains_of_namespaces_come_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 60.0)
    source = "{% set ns = namespace() %}{% for i in range(20000) %}{% set ns.x = namespace(p=ns.x) %}{% endfor %}ok"
    assert ChatTemplate(source).render(HI) == "ok"


# -- dates -------------------------------------------------------------------------------------------------------------

DATES = [
    *("%Y-%m-%d", "%d %b %Y", "%B %d, %Y", "%A %j %p %I", "%c %x %X", "%z%Z%f", "%Ey %Od"),
    *("%-d %B %Y", "%-d/%-m/%y", "%_d|%e|%-H:%M:%S", "%^a %#Z %0e", "%5d|%_10m|%-3d|%02d"),
    *("", "100%", "% d", "%Q", "%%-d %%999d %%%d", "kein %: d ä"),
]


@pytest.mark.parametrize("form", DATES)
def test_dates_are_those_of_python(form: str) -> None:
    source, talk = f"{{{{ strftime_now('{form}') }}}}", Conversation(messages=HI)
    assert rendered(source, talk, add_generation_prompt=False) == NOW.strftime(form)
    assert reference(source, talk, add_generation_prompt=False) == NOW.strftime(form)


@pytest.mark.parametrize(
    "form", ["%999d", "%-999d", "%_0999d", "%0100d", "%%%999d", "%100Y", "%9999999999d", "%^#1000000000Ed", "%d" * 200]
)
def test_dates_are_not_widened(form: str) -> None:
    with pytest.raises(UserError, match="strftime_now does not take"):
        ChatTemplate(f"{{{{ strftime_now('{form}') }}}}").render(HI)


# -- markup: a kind of text whose methods are Python code and escape their arguments -----------------------------------

MARKUP_BOMBS = {
    "replace": "{{ (('a' * 100000) | safe).replace('a', 'b' * 100000) }}",
    "replace, escaped": "{{ (('a' * 100000) | safe).replace('a', '\"' * 40) | length }}",
    "replace, no text": "{{ (('a' * 100000) | safe).replace('a', [['b' * 100]] * 10) | length }}",
    "join": "{{ (('a' * 100000) | safe).join(['b'] * 100000) }}",
    "join, escaped": "{{ ('' | safe).join(['\"' * 4000000]) | length }}",
    "strip": "{{ (('a' * 1000000) | safe).strip('b' * 1000000 ~ 'a') }}",
    "lstrip": "{{ (('a' * 1000000) | escape).lstrip('b' * 1000000 ~ 'a') }}",
    "%": "{{ (('%s' | safe) % ('\"' * 4000000)) | length }}",
    "format": "{{ ('{}' | safe).format('\"' * 4000000) | length }}",
    "+": "{{ (('' | safe) + '\"' * 4000000) | length }}",
    "radd": "{{ ('\"' * 4000000 + ('' | safe)) | length }}",
}


@pytest.mark.parametrize("source", MARKUP_BOMBS.values(), ids=MARKUP_BOMBS.keys())
def test_markup_stays_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SECONDS", 60.0)
    with pytest.raises(UserError, match=r"more than 16 MiB|more than 128 MiB|at most 256 characters"):
        ChatTemplate(source).render(HI)


@pytest.mark.parametrize("form", ["'%(a)s-%(b)03d' | format(a='x', b=7)", "'%s' | format('x')", "'%%' | format"])
def test_format_takes_names(form: str) -> None:
    source, talk = f"{{{{ {form} }}}}", Conversation(messages=HI)
    want: Any = reference(source, talk, add_generation_prompt=False)
    assert want and rendered(source, talk, add_generation_prompt=False) == want


def test_format_refuses_both() -> None:
    with pytest.raises(UserError, match="by position or by name"):
        ChatTemplate("{{ '%s' | format('x', a=1) }}", SPECIAL_TOKENS).render(HI)


SETS = "{% set x = 'ab' %}{{ seen() }}"


@pytest.mark.parametrize(
    "source", ["{% for i in [1] %}" + SETS + "{% endfor %}", "{% block b %}" + SETS + "{% endblock %}"]
)
def test_functions_that_want_their_scope_get_it(source: str) -> None:
    """As Jinja's `Context.call` hands it to a function that is passed the context."""

    @pass_context
    def seen(context: Context) -> Any:
        return context.get("x")

    env = TemplateEnvironment(lambda: NOW)
    env.globals["seen"] = seen
    assert env.from_string(source).render({meter.METER: meter.Meter(60.0)}) == "ab"
