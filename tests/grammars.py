"""Random grammars whose texts are short, and oracles that know nothing of llguidance: jsonschema, and Python's `re`."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
from vocabularies import byte_level, save

from stretto.core.card import CHANNELS, MIXERS
from stretto.core.grammar import Grammar
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from stretto.models.lm import LM

Check = Callable[[str], bool]


def small_tokenizer(folder: Path) -> Tokenizer:
    """A trained byte-level one; `<|im_end|>` ends a text."""
    return Tokenizer.from_dir(save(folder, byte_level(), {"bos_token": "<s>", "eos_token": "<|im_end|>"}))


def toy_of(tokenizer: Tokenizer, mixers: tuple[str, ...] = ("attention", "gated_delta"), seed: int = 0) -> "LM":
    """A random hybrid with a row for every token."""
    import torch
    from toy import lively_model, tiny, toy_config

    from stretto.models.lm import Layer

    torch.manual_seed(seed)
    layers = [Layer(mixer=tiny(MIXERS, name), channel=tiny(CHANNELS, "dense")) for name in mixers]
    return lively_model(replace(toy_config(layers), vocab_size=tokenizer.vocab_size))


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema with few and short documents, one of each kind of keyword that is enforced."""
    kinds = ["integer", "boolean", "null", "string", "enum", "const", "format"]
    kind = rng.choice([*kinds, "array", "object", "object", "anyOf", "tuple"] if depth else kinds)
    if kind == "integer":
        low = rng.randrange(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(100)}
    if kind == "string":
        low = rng.randrange(3)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randrange(4)}
    if kind == "enum":
        return {"enum": rng.sample([1, "one", None, True, "zwölf", [1, 2], {"a": 0}], rng.randrange(1, 4))}
    if kind == "const":
        return {"const": rng.choice([7, "seven", {"n": [7]}])}
    if kind == "format":
        return {"type": "string", "format": rng.choice(["date", "time", "uuid"])}
    if kind == "array":
        low = rng.randrange(2)
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": low, "maxItems": low + 1}
    if kind == "tuple":
        return {"type": "array", "prefixItems": [random_schema(rng, 0), random_schema(rng, 0)], "items": False}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1), random_schema(rng, depth - 1)]}
    if kind == "object":
        names = rng.sample(["a", "name", "the quick", "größe", "x1"], rng.randrange(1, 4))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": rng.sample(names, rng.randrange(len(names) + 1)),
            "additionalProperties": False,
        }
    return {"type": kind}


def random_regex(rng: random.Random, depth: int = 2) -> str:
    """An expression of bounded length that Python's `re` and Rust's `regex` read alike."""
    if not depth:
        return rng.choice(["a", "[bc]", "fox", "[0-9]", "é", "[^a-z\\n]", "\\."])
    kind = rng.randrange(4)
    inner = random_regex(rng, depth - 1)
    if kind == 0:
        return f"({inner}){{{rng.randrange(2)},{rng.randrange(1, 4)}}}"
    if kind == 1:
        return f"({inner}|{random_regex(rng, depth - 1)})"
    return inner + random_regex(rng, depth - 1)


def random_grammar(rng: random.Random, **options: Any) -> tuple[Grammar, Check]:
    """A grammar, and whether a text is one of its texts."""
    kind = rng.choice(["schema", "schema", "schema", "regex", "choice"])
    if kind == "schema":
        schema = random_schema(rng)
        return Grammar.json_schema(schema, **options), lambda text: fulfils(text, schema)
    if kind == "regex":
        pattern = random_regex(rng) + "z"
        return Grammar.regex(pattern, **options), lambda text: re.fullmatch(pattern, text) is not None
    choices = rng.sample(["yes", "no", "perhaps", "the quick brown fox", "jumps"], 3)
    return Grammar.choice(choices, **options), lambda text: text in choices


def fulfils(text: str, schema: Any) -> bool:
    """Whether a text is JSON that fulfils a schema, formats included."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(value)
