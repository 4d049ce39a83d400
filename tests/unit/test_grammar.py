"""Grammars and their matchers: what is enforced, what is refused by name, what a grammar can cost, and that going back
leaves nothing behind. The behaviour of llguidance that these tests rely on was seen in 1.9.1."""

import json
import os
import random
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from grammars import fulfils, random_grammar, small_tokenizer
from tokenizers import decoders, models, pre_tokenizers
from vocabularies import llama_like, save

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar
from stretto.core.tree import Tree
from stretto.text.grammar import limits
from stretto.text.grammar.compiler import Compiler
from stretto.text.grammar.matcher import Matcher
from stretto.text.grammar.trial import Trials
from stretto.text.tokenizer import Tokenizer
from stretto.text.tools import Tool, find_format, tools_grammar

INTEGER, CLOSED = {"type": "integer"}, {"type": "object", "additionalProperties": False}

HERMES = find_format("<tool_call>\n</tool_call>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer)


def is_text(compiler: Compiler, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    """Whether a text is one of a grammar's: some way to spell it in tokens is, to its end."""
    matcher = compiler.compile(grammar).matcher()
    for byte in text.encode():
        # One byte at a time, or the tokens that are forced.
        token = next((t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == bytes([byte])), None)
        assert token is not None
        if matcher.legal([token], Tree.chain(2)) != [1]:
            return False
        matcher.accept([token])
    return matcher.is_over or matcher.legal([min(tokenizer.eos_ids)], Tree.chain(2)) == [1]


# -- what JSON schemas may say -------------------------------------------------------------------------------------

# Schema, a text that it takes, a text that it refuses.
ENFORCED: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "string"}, '"a"', "1"),
    ({"type": ["integer", "null"]}, "null", '"a"'),
    ({"enum": ["a", 1, None]}, "null", "2"),
    ({"const": {"a": [1]}}, '{"a": [1]}', '{"a": [2]}'),
    ({"type": "integer", "maximum": 10}, "10", "11"),
    ({"type": "integer", "minimum": 10}, "10", "9"),
    ({"type": "number", "exclusiveMaximum": 2}, "1.5", "2"),
    ({"type": "number", "exclusiveMinimum": 2}, "2.5", "2"),
    ({"type": "integer", "multipleOf": 7}, "14", "15"),
    ({"type": "string", "minLength": 2}, '"ab"', '"a"'),
    ({"type": "string", "maxLength": 1}, '"a"', '"ab"'),
    ({"type": "string", "pattern": "^[ab]+$"}, '"ab"', '"c"'),
    ({"type": "string", "pattern": "b"}, '"abc"', '"ac"'),  # not anchored
    ({"type": "string", "format": "date"}, '"2024-02-29"', '"2024-13-01"'),
    ({"type": "string", "format": "uuid"}, '"123e4567-e89b-12d3-a456-426614174000"', '"123"'),
    ({"type": "string", "format": "ipv4"}, '"1.2.3.4"', '"1.2.3.999"'),
    ({"type": "array", "items": INTEGER}, "[1, 2]", '["a"]'),
    ({"type": "array", "prefixItems": [INTEGER], "items": False}, "[1]", "[1, 2]"),
    ({"type": "array", "minItems": 1, "items": INTEGER}, "[1]", "[]"),
    ({"type": "array", "maxItems": 1, "items": INTEGER}, "[1]", "[1, 2]"),
    ({"type": "object", "required": ["a"]}, '{"a": 1}', "{}"),
    ({**CLOSED, "properties": {"a": INTEGER}}, '{"a": 1}', '{"b": 1}'),
    ({"type": "object", "properties": {"a": INTEGER}}, '{"b": "x"}', '{"a": "x"}'),
    ({**CLOSED, "patternProperties": {"^a": INTEGER}}, '{"ab": 1}', '{"ab": "x"}'),
    ({"type": "object", "minProperties": 1}, '{"a": 1}', "{}"),
    ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"anyOf": [INTEGER, {"type": "null"}]}, "null", "true"),
    ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, "4", "6"),
    ({"oneOf": [INTEGER, {"type": "string"}]}, '"a"', "null"),
    ({"oneOf": [{**CLOSED, "properties": {k: INTEGER}, "required": [k]} for k in "ab"]}, '{"b": 1}', '{"c": 1}'),
    ({"$ref": "#/$defs/n", "$defs": {"n": INTEGER}}, "1", '"a"'),
    ({"type": "array", "items": INTEGER, "uniqueItems": False}, "[1, 1]", '["a"]'),
    ({"type": "string", "x-guidance": {"json_allowed_escapes": "n"}}, r'"\t"', "1"),
    ({"type": "boolean", "x-guidance": {"lenient": True}, "title": "t", "default": 1}, "true", "1"),
]


@pytest.mark.parametrize(("schema", "good", "bad"), ENFORCED, ids=lambda value: json.dumps(value)[:50])
def test_keywords_that_are_enforced(
    schema: dict[str, Any], good: str, bad: str, compiler: Compiler, tokenizer: Tokenizer
) -> None:
    assert fulfils(good, schema) and not fulfils(bad, schema), "the oracle agrees with this table"
    grammar = Grammar.json_schema(schema)
    assert is_text(compiler, tokenizer, grammar, good)
    assert not is_text(compiler, tokenizer, grammar, bad)


REFUSED: list[tuple[Any, str]] = [
    ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf"),
    ({"oneOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]}, "oneOf"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": INTEGER}, "contains"),
    ({"type": "array", "minContains": 1}, "minContains"),
    ({"not": INTEGER}, "not"),
    ({"if": INTEGER, "then": {"minimum": 1}}, "if, then"),
    ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "array", "unevaluatedItems": False}, "unevaluatedItems"),
    ({"$dynamicRef": "#x"}, r"\$dynamicRef"),
    ({"type": "string", "format": "regex"}, "format"),
    ({"type": "string", "format": "idn-email"}, "format"),
    ({"type": "xyz"}, "type"),
    ({"$ref": "#/$defs/no"}, r"\$ref"),
    ({"$ref": "https://localhost/schema"}, r"\$ref"),
    ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
    ({"type": "number", "minimum": 0.123456789012345, "maximum": 1e300}, "minimum and maximum"),
    ({"allOf": [INTEGER, {"type": "string"}]}, "cannot be fulfilled"),
    ({**CLOSED, "required": ["a"]}, "cannot be fulfilled"),
    ({"$ref": "#"}, "cannot be fulfilled"),
    (False, "must be an object"),
    ([1], "must be an object"),
]


@pytest.mark.parametrize(("schema", "named"), REFUSED, ids=lambda value: str(value)[:40])
def test_keywords_that_are_refused_by_name(schema: Any, named: str, compiler: Compiler) -> None:
    with pytest.raises(UserError, match=named) as caught:
        compiler.compile(Grammar.json_schema(schema))
    assert str(caught.value).startswith("error: the JSON schema")
    assert "<" not in caught.value.why.replace("(?<=a)b", "") if caught.value.why else True


def test_the_page_names_the_keywords() -> None:
    text = (Path(__file__).parents[2] / "docs" / "GRAMMARS.md").read_text()
    enforced, refused = text.partition("\nEnforced: ")[2].partition("\nRefused by name: ")[::2]
    refused = refused.partition("\n\n")[0]
    notes = {"$defs", "x-guidance", "title", "default"}
    assert {key for schema, _, _ in ENFORCED for key in schema} - notes <= {*enforced.split("`"), "uniqueItems"}
    named = {name.lstrip("\\") for _, names in REFUSED for name in names.split(", ") if " " not in name}
    assert named - {"type", "pattern"} <= set(refused.split("`"))


# Valid JSON that a grammar need not be able to write: whether ours can.
WRITABLE: list[tuple[dict[str, Any], str, bool]] = [
    (INTEGER, "1.0", False),
    (INTEGER, "1e2", False),
    ({"type": "integer", "maximum": 10}, "1e1", False),
    ({"type": "number"}, "1e5", True),
    ({"type": "number"}, "-0", True),
    ({"type": "number", "maximum": 10}, "1e0", False),
    ({"type": "string"}, r'"\u0041"', False),
    ({"type": "string"}, r'"\u0007"', True),
    ({"type": "string"}, r'"\/"', False),
    ({"type": "string"}, '"é"', True),
    ({"type": "string", "maxLength": 1}, r'"\n"', True),
    ({"type": "string", "maxLength": 1}, '"é"', True),
    ({"enum": [1]}, "1.0", False),
    ({"type": "object", "properties": {"a": INTEGER, "b": INTEGER}}, '{"b": 1, "a": 2}', False),  # in order
    ({"type": "object", "properties": {"a": INTEGER}}, '{"x": 1, "a": 2}', False),  # others come last
    ({"type": "object"}, '{"a":1}', False),  # one_line
]


@pytest.mark.parametrize(("schema", "text", "can"), WRITABLE, ids=str)
def test_which_valid_documents_a_grammar_writes(
    schema: dict[str, Any], text: str, can: bool, compiler: Compiler, tokenizer: Tokenizer
) -> None:
    assert fulfils(text, schema), "valid, as the oracle has it"
    assert is_text(compiler, tokenizer, Grammar.json_schema(schema), text) == can


def test_white_space_is_free_where_that_is_asked_for(compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {**CLOSED, "properties": {"a": INTEGER}, "required": ["a"]}
    free = Grammar.json_schema(schema, whitespace="free")
    for text in ('{"a":1}', '{\n  "a" : 1\n}'):
        assert is_text(compiler, tokenizer, free, text)
    assert not is_text(compiler, tokenizer, free, '{"a":' + " " * 60 + "1}"), "not without end"
    assert is_text(compiler, tokenizer, Grammar.json_schema(schema), '{"a": 1}')


def test_expressions_and_choices_match_whole_texts(compiler: Compiler, tokenizer: Tokenizer) -> None:
    for grammar, good, bad in (
        (Grammar.regex("a+b?"), "aab", "ba"),
        (Grammar.regex("foo**"), "foooo", "bar"),
        (Grammar.regex("(a+)+c"), "aaac", "aaa"),
        (Grammar.choice(["a/b", 'say "é"\n', "a"]), 'say "é"\n', "b"),
        (Grammar.lark('start: "x" start | "y"'), "xxy", "xx"),
    ):
        assert is_text(compiler, tokenizer, grammar, good) and not is_text(compiler, tokenizer, grammar, bad)
    for bad_grammar, why in (
        (Grammar.regex("(?=a)a"), "look-around"),
        (Grammar.regex(r"(a)\1"), "backreferences"),
        (Grammar.regex("(" * 30_000 + "a" + ")" * 30_000), "cannot be used"),
        (Grammar.lark("start: nothing"), "cannot be used"),
        (Grammar.lark("start: start"), "cannot be fulfilled"),
        (Grammar.lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "cannot be used"),
    ):
        with pytest.raises(UserError, match=why):
            compiler.compile(bad_grammar)


# -- bounds --------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_before_it_is_parsed() -> None:
    deep = "[" * 65 + "]" * 65
    for make, why in (
        (lambda: Grammar.json_schema("{" + " " * (64 << 10) + "}"), "65,538 bytes"),
        (lambda: Grammar.regex("a" * ((64 << 10) + 1)), "65,537 bytes"),
        (lambda: Grammar.lark("a" * ((64 << 10) + 1)), "65,537 bytes"),
        (lambda: Grammar.json_schema('{"enum": ' + deep + "}"), "66 levels"),
        (lambda: Grammar.json_schema("[" * 60_000), "60000 levels"),
        (lambda: Grammar.json_schema("{"), "is not JSON"),
        (lambda: Grammar.json_schema('{"minimum": NaN}'), "is not JSON"),
        (lambda: Grammar.json_schema({"minimum": float("inf")}), "is not JSON"),
        (lambda: Grammar.json_schema({"enum": [object()]}), "is not JSON"),
        (lambda: Grammar.regex("\ud800"), "not valid Unicode"),
        (lambda: Grammar.regex(7), "must be a text"),  # type: ignore[arg-type]
        (lambda: Grammar.choice([]), "0 choices"),
        (lambda: Grammar.choice(["a"] * 1025), "1,025 choices"),
        (lambda: Grammar.choice(["a", ""]), "not empty"),
        (lambda: Grammar.choice("abc"), "not empty"),
        (lambda: Grammar.regex("a", after=""), "empty text"),
        (lambda: Grammar.regex("a", after="a" * 257), "257 bytes"),
        (lambda: Grammar.regex("a", budget=3), "before `after`"),
        (lambda: Grammar.regex("a", after="b", budget=-1), "budget"),
        (lambda: Grammar.regex("a", after="b", budget=True), "budget"),
        (lambda: Grammar.json_object(whitespace="lots"), "one_line or free"),
    ):
        with pytest.raises(UserError, match=why):
            make()
    assert Grammar.json_schema('{"const": "' + "[" * 100 + '\\""}').text, "brackets in strings are no levels"


@pytest.mark.parametrize(("ends", "why"), [(False, "more than 0.5 s"), (True, "too complex")], ids=["late", "ended"])
def test_what_its_compiler_does_not_survive_costs_a_process_of_its_own(
    ends: bool, why: str, tokenizer: Tokenizer
) -> None:
    """A process that stands still, or ends while it is waited for, as if by the grammar it was given."""
    compiler = Compiler(tokenizer)
    compiler._trials = Trials(tokenizer, seconds=0.5 if not ends else 60)
    assert is_text(compiler, tokenizer, Grammar.regex("cd"), "cd")
    (process,) = compiler._trials._idle
    os.kill(process._child.pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, process._child.kill)
    if ends:
        killer.start()
    with pytest.raises(UserError, match=why):
        compiler.compile(Grammar.regex("ef"))
    assert process._child.returncode == -signal.SIGKILL, "it is gone in both cases"
    assert is_text(compiler, tokenizer, Grammar.regex("ab"), "ab"), "the next one finds a process again"
    assert compiler._trials._idle != [process]
    killer.cancel()
    compiler._trials.close()


def test_memory_of_a_trial_is_bounded(tokenizer: Tokenizer) -> None:
    """The system bounds it, counted from what the process had before its first grammar; and it writes no core file."""
    compiler = Compiler(tokenizer)
    trials = compiler._trials = Trials(tokenizer, memory_bytes=48 << 20)
    assert is_text(compiler, tokenizer, Grammar.regex("ab"), "ab")
    (process,) = trials._idle
    pid = process._child.pid
    most, now = resource.prlimit(pid, resource.RLIMIT_AS), int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    assert most[0] == most[1] and 0 < most[0] - now * resource.getpagesize() <= 48 << 20
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    trials.close()


def forced_text(compiler: Compiler, tokenizer: Tokenizer, schema: Any) -> str:
    """The text that a schema leaves no choice about."""
    matcher, text = compiler.compile(Grammar.json_schema(schema)).matcher(), b""
    while not matcher.is_over:
        may = bits(matcher.allowed()) - tokenizer.eos_ids
        spelled = {tokenizer.token_bytes(t) for t in may}
        if not may:
            break
        assert len({piece[:1] for piece in spelled}) == 1, spelled
        token = next(t for t in may if len(tokenizer.token_bytes(t)) == 1)
        text += tokenizer.token_bytes(token)
        matcher.accept([token])
    return text.decode()


def test_numbers_are_written_as_they_are_or_refused(compiler: Compiler, tokenizer: Tokenizer) -> None:
    """llguidance 1.9.1 rounds whole numbers to double precision."""
    exact = [0, 2**53, -(2**53), 2**53 + 2, 2**60, -(2**62)]
    rounded = [2**53 + 1, -(2**53) - 1, 1234567890123456789, 2**63 - 1, 2**63, 10**30, 10**400]
    random_ = random.Random(1)
    for number in (random_.randrange(-(2**62), 2**63) for _ in range(40)):
        (exact if float(number) == number else rounded).append(number)
    for number in exact:
        for schema in (
            {"const": number},
            {"enum": [number]},
            {"type": "integer", "minimum": number, "maximum": number},
        ):
            assert forced_text(compiler, tokenizer, schema) == str(number)
    for number in rounded:
        inner = {"properties": {"const": {"anyOf": [{"enum": [{"a": [number]}]}]}}}
        for schema in ({"const": number}, {"enum": [1, number]}, inner, {"items": {"multipleOf": number}}):
            with pytest.raises(UserError, match="double precision"):
                compiler.compile(Grammar.json_schema(schema))
            parameters = {"type": "object", "properties": {"a": schema}}
            with pytest.raises(UserError, match="double precision"):
                tools_grammar([Tool("f", parameters)], HERMES, tokenizer)
    for schema in (
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "integer", "maximum": 10**30},
        {"type": "integer", "default": 10**30},
    ):
        assert is_text(compiler, tokenizer, Grammar.json_schema(schema), str(2**63 - 1))
    assert not is_text(compiler, tokenizer, Grammar.json_schema({"type": "integer", "maximum": 2**63 - 1}), str(2**63))


def test_grammars_are_compiled_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.compile(Grammar.regex("once"))
    monkeypatch.setattr(compiler, "_compiled", None)
    assert compiler.compile(Grammar.regex("once")) is first


def test_vocabularies_without_an_end_are_refused(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(
        models.BPE({char: i for i, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    with pytest.raises(UserError, match="names no token that ends a text"):
        Compiler(Tokenizer.from_dir(save(tmp_path, inner, {}))).compile(Grammar.regex("a"))


# -- matchers ------------------------------------------------------------------------------------------------------


def bits(mask: bytes) -> set[int]:
    return {t for t in range(8 * len(mask)) if mask[t // 8] >> t % 8 & 1}


def walk(compiler: Compiler, tokenizer: Tokenizer, grammar: Grammar, rng: random.Random) -> list[int]:
    """A random text of a grammar, in tokens."""
    matcher, found = compiler.compile(grammar).matcher(), list[int]()
    while not matcher.is_over and len(found) < 60:
        found.append(rng.choice(sorted(bits(matcher.allowed()))))
        matcher.accept(found[-1:])
    return found


def behind(compiler: Compiler, grammar: Grammar, tokens: list[int]) -> Matcher:
    """A new matcher that has read these tokens and never went back."""
    matcher = compiler.compile(grammar).matcher()
    matcher.accept(tokens)
    return matcher


def state(matcher: Matcher) -> tuple[bytes, bool, tuple[int, ...]]:
    return (matcher.allowed(), matcher.is_over, matcher.forced(16))


@pytest.mark.parametrize("seed", range(12))
def test_going_back_leaves_nothing_behind(seed: int, compiler: Compiler, tokenizer: Tokenizer) -> None:
    """Random texts of random grammars: after accepting and rolling back, and after walks along trees, a matcher is as
    one that only read what it holds."""
    rng = random.Random(seed)
    options = [{}, {"after": "ab", "budget": 3}][seed % 2]
    grammar, check = random_grammar(rng, **options)
    text = walk(compiler, tokenizer, grammar, rng)
    matcher, held = compiler.compile(grammar).matcher(), 0
    if len(text) < 60:
        said = tokenizer.decode(text)
        assert check(said.partition("ab")[2] if options else said)
    for _ in range(25):
        there = rng.randrange(len(text) + 1)
        if there > held:
            matcher.accept(text[held:there])
        else:
            matcher.rollback(held - there)
        held = there
        assert state(matcher) == state(behind(compiler, grammar, text[:held]))
        n = rng.randrange(1, 10)
        tree = Tree.drafted([rng.randrange(row) for row in range(1, n + 1)])
        tokens = []
        for row in range(1, n + 1):
            right = text[held + tree.depths[row] - 1 :][:1]
            tokens.append(right[0] if right and rng.random() < 0.7 else rng.randrange(tokenizer.vocab_size))
        masks, legal = matcher.masks(tokens, tree), matcher.legal(tokens, tree)
        for row, path in enumerate(tree.paths):
            told = [tokens[r - 1] for r in path[1:]]
            try:
                want = behind(compiler, grammar, [*text[:held], *told]).allowed()
            except UserError:
                want = None
            assert masks[row] == want
            assert (row in legal) == (want is not None and row > 0)
        assert state(matcher) == state(behind(compiler, grammar, text[:held]))


@pytest.mark.parametrize("seed", range(8))
def test_forced_tokens_are_all_that_is_allowed(seed: int, compiler: Compiler, tokenizer: Tokenizer) -> None:
    rng = random.Random(seed)
    grammar, _ = random_grammar(rng)
    text = walk(compiler, tokenizer, grammar, rng)
    for n in range(len(text)):
        matcher = behind(compiler, grammar, text[:n])
        for token in matcher.forced(16):
            assert bits(matcher.allowed()) == {token}
            matcher.accept([token])


def test_an_end_token_behind_a_text_that_is_over_can_be_taken_back(compiler: Compiler, tokenizer: Tokenizer) -> None:
    a, b, end = (*(tokenizer.encode(text)[0] for text in "ab"), min(tokenizer.eos_ids))
    matcher = compiler.compile(Grammar.regex("ab")).matcher()
    matcher.accept([a, b])
    assert matcher.is_over and matcher.legal([end, b], Tree.chain(3)) == [1]
    matcher.accept([end])
    matcher.rollback(1)
    assert matcher.is_over
    matcher.rollback(1)
    assert not matcher.is_over and bits(matcher.allowed()) == {b}


def test_a_mask_that_takes_too_long_ends_its_request(
    compiler: Compiler, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = compiler.compile(Grammar.regex("a+b")).matcher()
    monkeypatch.setattr(limits, "MASK_SECONDS", -1.0)
    with pytest.raises(UserError, match="too complex at this place"):
        matcher.allowed()
    assert matcher.legal([tokenizer.encode("a")[0]], Tree.chain(2)) == [1], "drafts are cut without masks"


def test_a_token_that_breaks_the_grammar_is_an_error(compiler: Compiler, tokenizer: Tokenizer) -> None:
    a, b = (tokenizer.encode(text)[0] for text in "ab")
    matcher = compiler.compile(Grammar.regex("aab")).matcher()
    with pytest.raises(UserError, match="breaks the grammar"):
        matcher.accept([a, b])
    assert bits(matcher.allowed()) == {a}, "it stands behind the first"


def test_special_tokens_are_no_text_unless_they_are_named(compiler: Compiler, tokenizer: Tokenizer) -> None:
    bos = tokenizer.bos_id
    assert bos is not None
    assert bos not in bits(compiler.compile(Grammar.regex("(.|\n)*")).matcher().allowed())
    named = compiler.compile(Grammar.lark('start: <s> "a"')).matcher()
    assert bits(named.allowed()) == {bos}
    spelled = compiler.compile(Grammar.regex("<s>a")).matcher()
    assert tokenizer.token_bytes(min(bits(spelled.allowed()))) == b"<"


def test_the_free_part_ends_where_the_grammar_can_begin(compiler: Compiler, tokenizer: Tokenizer) -> None:
    """A token that goes on behind `after` is forbidden, white space behind it is not; nor is an end before it."""
    fox, dog = tokenizer.encode(" fox")[0], tokenizer.encode(" dog")[0]
    assert (tokenizer.token_bytes(fox), tokenizer.token_bytes(dog)) == (b" fox", b" dog")
    matcher = compiler.compile(Grammar.regex("yes", after="fo")).matcher()
    allowed = bits(matcher.allowed())
    assert fox not in allowed and dog in allowed and not tokenizer.eos_ids & allowed
    assert matcher.legal([dog, fox], Tree.drafted([0, 0])) == [1]
    f, o = (tokenizer.encode(text)[0] for text in "fo")
    matcher.accept([dog, f, f, o])
    y = tokenizer.encode("y")[0]
    assert all(tokenizer.token_bytes(t).startswith(b"y") for t in bits(matcher.allowed())) and y is not None
    matcher.rollback(1)
    assert dog in bits(matcher.allowed())


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies(prefix: bool, tmp_path: Path) -> None:
    inner = llama_like()
    tokenizer = Tokenizer.from_dir(save(tmp_path, inner, {"bos_token": "<s>", "eos_token": "</s>"}))
    compiler = Compiler(tokenizer)
    text = " ab" if prefix else "ab"
    grammar = Grammar.regex(text + "c")
    matcher = compiler.compile(grammar).matcher()
    forced = matcher.forced(9)
    assert b"".join(map(tokenizer.token_bytes, forced)) == (text + "c").encode()
    matcher.accept(forced)
    assert matcher.is_over
