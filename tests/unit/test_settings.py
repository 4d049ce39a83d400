"""`Settings`: one value by every way in, which way wins, and what is refused before anything is read."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Run

from stretto import LLM, AsyncLLM, Sampling, Settings
from stretto.cli import _flags
from stretto.cli import run as run_verb
from stretto.cli._settings import settings
from stretto.core.errors import UserError
from stretto.core.option import options_of
from stretto.core.policy import Job, OrderPolicy
from stretto.core.settings import Configuration, configure, read_draft
from stretto.drafters import ngram
from stretto.engine.judges.greedy import Greedy
from stretto.engine.policies.draft.always import Always

EXAMPLES: dict[str, tuple[str, Any]] = {
    "draft": ("ngram:max_n=3,nodes=5", "ngram:max_n=3,nodes=5"),
    "judge": ("ratio", "ratio"),
    "order": ("priority:aging=2.5", "priority:aging=2.5"),
    "length": ("history:quantile=0.9", "history:quantile=0.9"),
    "chunk": ("paced:tbt=0.1", "paced:tbt=0.1"),
    "dtype": ("float32", "float32"),
    "backend": ("torch", "torch"),
    "prefill": ("int8", "int8"),
    "kv": ("int8", "int8"),
    "context": ("64", 64),
    "max_seqs": ("3", 3),
    "max_rows": ("40", 40),
    "memory": ("3MiB", "3MiB"),
    "prefix_cache": ("3MiB", "3MiB"),
    "evict": ("marconi:alpha=0.5", "marconi:alpha=0.5"),
    "max_loras": ("4", 4),
    "max_lora_rank": ("16", 16),
    "threads": ("1", 1),
    "chat_template": ("own.jinja", Path("own.jinja")),
}
"""By field: a text, and the same from Python."""
BAD: dict[str, Sequence[tuple[str, Any]]] = {
    "draft": [
        ("ngrm", "ngrm"),
        ("ngram:nodes=0", "ngram:nodes=0"),
        ("ngram:n=x", 3),
        ("none:nodes=4", ngram.Config()),
        ("ngram:max_n=0", (Always(4), ngram.Config())),
    ],
    "judge": [("copled", "copled"), ("1", Greedy)],
    "order": [("fcsf", "fcsf"), ("priority:aging=0", "priority:aging=x"), ("fcfs:aging=1", 1)],
    "length": [("limt", "limt"), ("history:quantile=1", "history:quantile=x"), ("limit:x=1", 1)],
    "chunk": [("paced:tbt=0", "paced:tbt=0"), ("algned", "algned"), ("aligned:n=2", 2)],
    "dtype": [("float16", "float16"), ("torch.float32", torch.float32)],
    "backend": [("cuda", "cuda"), ("none", None)],
    "prefill": [("int4", "int4")],
    "kv": [("q8", "q8"), ("bf61", 8)],
    "context": [("1", 1), ("many", "64"), ("1e3", 1e3), ("-5", True)],
    "max_seqs": [("0", 0), ("x", None), ("65537", 65537)],
    "max_rows": [("0", 0), ("nan", 2.5)],
    "memory": [("lots", "lots"), ("0", 0), ("-1", -1), ("inf", True)],
    "prefix_cache": [("lots", "lots"), ("0", 0), ("-1", -1), ("inf", True)],
    "evict": [("lur", "lur"), ("marconi:alpha=-1", "marconi:alpha=x"), ("lru:n=1", 1)],
    "max_loras": [("-1", -1), ("1025", 1025)],
    "max_lora_rank": [("0", 0), ("1025", 1025)],
    "threads": [("0", 0), ("1025", 1025), ("two", "2")],
    "chat_template": [("no/such.jinja", Path("no/such.jinja")), (".", Path()), ("?", 3)],
}
OPTIONS = {one.field: one for one in options_of(Settings)}
NAMES = [field.name for field in fields(Settings)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """A verb with settings and nothing else."""

    configuration: Configuration = settings(draft="none", max_seqs=1)


def by_flags(*words: str) -> Configuration:
    return _flags.parse(Verb, words, "sing").configuration


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with a template."""
    (tmp_path / "own.jinja").write_text("<{{ messages[0].content }}>")
    monkeypatch.chdir(tmp_path)


def test_every_field_has_an_example_and_is_an_option() -> None:
    assert list(EXAMPLES) == list(BAD) == NAMES == list(OPTIONS)
    assert not [name for name, (_, value) in EXAMPLES.items() if value == getattr(Settings(), name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_a_variable_and_python_give_the_same(name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = EXAMPLES[name]
    one = OPTIONS[name]
    want = Settings(**{name: value})
    for found in (
        configure({name: [text]}, environ={}),
        configure(environ={one.variable: text}),
        configure(defaults={name: value}, environ={}),
    ):
        assert found.settings == want == Settings().replace(**{name: value})
    rest = {"draft": "none", "max_seqs": 1} | {name: value}
    assert by_flags(one.name, text).settings == by_flags(f"{one.name}={text}").settings == Settings(**rest)
    monkeypatch.setenv(one.variable, text)
    assert by_flags().settings == Settings(**rest), "a variable wins over the default of a verb"
    assert LLM(tiny).settings == want
    monkeypatch.delenv(one.variable)
    assert LLM(tiny, **{name: value}).settings == LLM(tiny, want).settings == want


def test_which_way_wins(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def context_of(*words: str) -> tuple[int | None, str | None]:
        found = by_flags(*words)
        return found.settings.context, found.sources.get("context")

    assert context_of() == (None, None)
    monkeypatch.setenv("STRETTO_CTX", "")
    assert context_of() == (None, None), "empty is not set"
    monkeypatch.setenv("STRETTO_CTX", "64")
    assert context_of() == (64, "STRETTO_CTX") and LLM(tiny).engine.runner.sizes.context == 64
    assert context_of("--ctx", "32") == (32, "--ctx") and LLM(tiny, context=32).engine.runner.sizes.context == 32
    assert LLM(tiny, Settings()).engine.runner.sizes.context == 128, "settings that are given are all of them"
    assert LLM(tiny, Settings(context=99), context=32).engine.runner.sizes.context == 32
    assert by_flags().sources["max_seqs"] == "stretto sing"
    monkeypatch.setenv("STRETTO_CTX", "many")
    assert context_of("--ctx", "32") == (32, "--ctx"), "what does not count is not read"
    assert LLM(tiny, context=32).settings.context == LLM(tiny, Settings(context=32)).settings.context == 32
    with pytest.raises(UserError, match="STRETTO_CTX is 'many'"):
        LLM(tiny)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_is_refused_before_anything_is_read(name: str, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one = OPTIONS[name]

    def check(lines: Sequence[str], what: str) -> None:
        assert [line.partition(": ")[0] for line in lines] == ["error", "why", "try"], lines
        assert lines[0].startswith(f"error: {what} "), lines

    for text, value in BAD[name]:
        for make in (Settings, Settings().replace, lambda **bad: LLM("no such model", **bad)):
            with pytest.raises(UserError) as caught:
                make(**{name: value})  # type: ignore[operator]
            check(caught.value.lines(), name)
        for verb in (("run", "no-such-model", "hi"), ("bench", "no-such-model"), ("doctor", "no-such-model")):
            code, out, err = cli(*verb, f"{one.name}={text}")
            assert (code, out) == (2, "")
            check(err.splitlines(), one.name)
        monkeypatch.setenv(one.variable, text)
        for verb in (("run", "no-such-model", "hi"), ("show", "no-such-model")):
            code, out, err = cli(*verb)
            assert (code, out) == (2, "")
            check(err.splitlines(), one.variable)
        with pytest.raises(UserError) as caught:
            LLM("no such model")
        check(caught.value.lines(), one.variable)
        monkeypatch.delenv(one.variable)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dtype": "float32", "backend": "native"}, "dtype float32 with backend native"),
        ({"prefill": "int8", "backend": "torch"}, "prefill int8 needs the native kernels"),
        ({"prefill": "int8", "dtype": "float32"}, "prefill int8 needs the native kernels"),
    ],
    ids=str,
)
def test_values_that_exclude_each_other_are_refused(changes: dict[str, str], error: str, cli: Run) -> None:
    with pytest.raises(UserError, match=error) as caught:
        Settings(**changes)
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    code, _, err = cli("run", "no-such-model", "hi", *words)
    assert code == 2 and err.splitlines() == caught.value.lines() and len(caught.value.lines()) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda **changes: LLM("no such model", **changes),
        lambda **changes: AsyncLLM("no such model", **changes),
        Settings().replace,
    ],
    ids=["LLM", "AsyncLLM", "replace"],
)
def test_an_unknown_name_is_refused_with_near_ones(make: Callable[..., object]) -> None:
    for name, near in (("contxt", "did you mean context?"), ("memory_bytes", "did you mean memory?"), ("x", "one of")):
        with pytest.raises(UserError, match=f"unknown setting '{name}'") as caught:
            make(**{name: 1})
        assert str(caught.value.try_).startswith(near)


class Backwards(OrderPolicy):
    def order(self, jobs: Sequence[Job], now: float) -> list[Job]:
        return sorted(jobs, key=lambda job: -job.rid)


def test_objects_may_stand_for_names(tiny: Path) -> None:
    drafting, judge, order = (ngram.Config(), Always(4)), Greedy(), Backwards()
    llm = LLM(tiny, draft=drafting, judge=judge, order=order, max_seqs=1)
    policies = llm.engine.scheduler.policies
    assert isinstance(llm.engine.drafting.drafter, ngram.NGram) and llm.engine.judge is judge
    assert policies.draft is drafting[1] and policies.order is order
    rids = [llm.add([1, 2], Sampling(temperature=0, max_tokens=2), continues=True).request.rid for _ in range(3)]
    ends: list[int] = []
    while not llm.engine.is_idle:
        ends += [event.rid for event in llm.engine.step(0) if event.finish_reason]
    assert ends == rids[::-1], "the latest goes first"
    said = Settings(draft=drafting, judge=judge, order=order).as_dict()
    assert (said["draft"], said["judge"], said["order"]) == (["Config", "Always"], "Greedy", "Backwards")
    llm = LLM(tiny, chat_template="{{ messages[0].content }}!")
    assert llm.encode_chat([{"role": "user", "content": "hi"}]) == llm.encode("hi!")


def test_settings_reach_what_they_say(tiny: Path) -> None:
    llm = LLM(
        tiny, context=64, max_seqs=3, max_rows=40, memory="3MiB", threads=1, prefill="int8", draft="ngram:nodes=5"
    )
    config = llm.engine.runner.sizes
    assert (config.context, config.max_seqs, config.max_rows, config.memory_bytes) == (64, 3, 40, 3 << 20)
    assert config.coarse_prompts and config.kv == "bf16"
    assert llm.backend_choice.threads is not None and llm.backend_choice.threads.num_threads == 1
    policy = llm.engine.scheduler.policies.draft
    assert isinstance(llm.engine.drafting.drafter, ngram.NGram) and policy is not None
    assert policy.budgets([Job(0, 0.0, 1, 9)], 63) == [5]
    plain = LLM(tiny, draft="none", dtype="float32", memory=3 << 20, judge="ratio")
    assert plain.engine.drafting.drafter is None and plain.engine.runner.sizes.kv == "f32"
    assert plain.engine.runner.sizes.memory_bytes == 3 << 20 and type(plain.engine.judge).__name__ == "Ratio"


def test_parts_of_a_draft() -> None:
    assert read_draft("none") is None
    for spec, want in (
        ("auto", ("ngram", True, None, {})),
        ("auto:nodes=3", ("ngram", True, 3, {})),
        ("ngram:max_n=3,nodes=63", ("ngram", False, 63, {"max_n": 3})),
        ("suffix:least=0.5,depth=9", ("suffix", True, None, {"least": 0.5, "depth": 9})),
        ("model:path=some/where", ("model", True, None, {"path": "some/where"})),
    ):
        found = read_draft(spec)
        assert found is not None
        assert (found.filler.card.name, found.is_automatic, found.nodes, found.filler.options) == want
    with pytest.raises(UserError, match=r"(?s)--draft is 'ngram:max_n=0'.*ngram: min_n 1, max_n 0"):
        read_draft("ngram:max_n=0", "--draft")
    with pytest.raises(UserError, match="did you mean max_n"):
        read_draft("ngram:mx_n=2")


@pytest.mark.parametrize(
    ("field", "text", "why"),
    [
        ("judge", "ratio:draw=1", "ratio has no settings"),
        ("order", "priority:aging=inf", "above 0"),
        ("order", "priority:aging=nan", "above 0"),
        ("order", "shortest:speed=inf", "above 0"),
        ("draft", "suffix:factor=inf", "factor above 0"),
        ("draft", "ngram:nodes=" + "9" * 5000, "a draft has 1 to 63"),
    ],
    ids=lambda x: x[:20] if x else None,
)
def test_a_filler_refuses_what_it_cannot_be_set_to(field: str, text: str, why: str) -> None:
    with pytest.raises(UserError, match=f"(?s){field} is .*{why}"):
        Settings(**{field: text})


# -- how tokens are chosen ---------------------------------------------------------------------------------------------

SAMPLING: dict[str, tuple[str, Any]] = {
    "max_tokens": ("5", 5),
    "min_tokens": ("2", 2),
    "temperature": ("0.5", 0.5),
    "top_p": ("1e-1", 0.1),
    "top_k": ("-1", -1),
    "min_p": ("0.25", 0.25),
    "presence_penalty": ("-2", -2.0),
    "frequency_penalty": ("1.5", 1.5),
    "repetition_penalty": ("1.1", 1.1),
    "seed": (str(2**64 - 1), 2**64 - 1),
    "stop": ("a,b", ("a,b",)),
    "stop_token_ids": ("3,4", (3, 4)),
    "ignore_eos": ("", True),
}


@pytest.mark.parametrize("name", [one.field for one in options_of(Sampling) if one.has_text])
def test_a_flag_gives_the_sampling_of_python(name: str) -> None:
    one = next(one for one in options_of(Sampling) if one.field == name)
    text, value = SAMPLING[name]
    words = [f"{one.name}={text}" if text else one.name]
    want = Sampling(**{name: value})
    assert _flags.parse(run_verb.Options, ["m", *words], "run").sampling == want != Sampling()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")}, {"temperature": 101}, {"temperature": "1"}, {"min_p": True}, {"top_p": 0},
        {"top_k": -2}, {"top_k": 1.0}, {"seed": 2**64}, {"max_tokens": 0}, {"stop": 5}, {"stop_token_ids": [-1]},
        {"stop_token_ids": [2**31 + 1]}, {"logprobs": 21}, {"logit_bias": {1: 101.0}}, {"logit_bias": {-1: 1.0}},
        {"repetition_penalty": 0.0}, {"presence_penalty": float("inf")}, {"min_tokens": None}, {"stop": ""},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_sampling_can_be(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_show_says_what_differs_and_where_it_came_from(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(cli("show", tiny, "--json")[1])["settings"] == {}
    assert re.search("^settings +none$", cli("show", tiny)[1], re.M)
    monkeypatch.setenv("STRETTO_CTX", "64")
    monkeypatch.setenv("STRETTO_DTYPE", "bfloat16")
    monkeypatch.setenv("STRETTO_CHAT_TEMPLATE", "own.jinja")
    assert json.loads(cli("show", tiny, "--json")[1])["settings"] == {
        "context": {"value": 64, "from": "STRETTO_CTX"},
        "chat_template": {"value": "own.jinja", "from": "STRETTO_CHAT_TEMPLATE"},
    }
    assert "context 64 (STRETTO_CTX), chat_template own.jinja (STRETTO_CHAT_TEMPLATE)" in cli("show", tiny)[1]


def test_run_says_what_it_was_run_with(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_MEM", "3MiB")
    code, out, err = cli("run", tiny, "hi", "--raw", "-n", "1", "--json", "--ctx", "64", "--chat-template=own.jinja")
    assert code == 2 and "--raw and --chat-template exclude each other" in err
    monkeypatch.setenv("STRETTO_CHAT_TEMPLATE", "own.jinja")
    code, out, err = cli("run", tiny, "hi", "--raw", "-n", "1", "--json", "--ctx", "64")
    want = Settings(max_seqs=1, context=64, memory="3MiB", chat_template="own.jinja").as_dict()
    assert code == 0 and json.loads(out)["settings"] == want, err
