"""The web page in a real browser, over a real model: written to, looked at, stopped, raced, recorded and replayed.

Chromium is the one that is installed (Debian's `chromium`); `pip install stretto[browser]` brings what drives it. The
page is used as it is served, policy and all, so nothing here runs strings as code inside of it. Pictures are kept
beside the other files of a test run.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving

from stretto import LLM

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install stretto[browser]"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.full,
    pytest.mark.model,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
SONG = "Write a song with a chorus that comes back three times."
KEY = "sesame"
TOKENS = ".turn.assistant .token:not(.rejected)"


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[Running]:
    """It drafts four tokens in every step, right or wrong."""
    with serving(LLM(smollm2_path, draft="ngram:nodes=4", max_seqs=4, context=1024), key=KEY) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield one
        one.close()


class Tab:
    """A tab of a fresh browser profile. problems: what went wrong in it; elsewhere: requests that left the server."""

    def __init__(self, browser: Any, server: Running, pictures: Path, **options: Any) -> None:
        options = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light", **options}
        self.context = browser.new_context(**options)
        self.page, self.pictures = self.context.new_page(), pictures
        self.problems: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda problem: self.problems.append(str(problem)))
        self.page.on("console", self._hear)
        self.page.on("request", lambda one: one.url.startswith((server.url, "blob:")) or self.elsewhere.append(one.url))
        self.page.goto(server.url)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "401" not in message.text and "503" not in message.text:
            self.problems.append(message.text)

    def enter(self) -> None:
        self.page.locator("#key-dialog[open]").wait_for()
        self.page.fill("#key", KEY)
        self.page.keyboard.press("Enter")
        self.page.locator("#status[data-state=ready]").wait_for()

    def ask(self, text: str, **settings: Any) -> None:
        if not self.page.is_visible("#temperature"):
            self.page.click("#settings summary")
        for name, value in {"temperature": 0, "max_tokens": 80, **settings}.items():
            self.page.fill(f"#{name}", str(value))
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def answered(self, number: int = 1) -> None:
        self.page.locator(".turn.assistant:not(.busy)").nth(number - 1).wait_for(timeout=60_000)

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def close(self) -> None:
        self.context.close()
        assert not self.problems and not self.elsewhere


@pytest.fixture
def tab(browser: Any, server: Running, tmp_path: Path) -> Iterator[Tab]:
    one = Tab(browser, server, tmp_path)
    one.enter()
    yield one
    one.close()


def test_the_key_is_asked_for_and_forgotten_with_the_tab(browser: Any, server: Running, tmp_path: Path) -> None:
    one = Tab(browser, server, tmp_path)
    one.page.locator("#key-dialog[open]").wait_for()
    one.picture("key")
    one.page.fill("#key", "wrong")
    one.page.keyboard.press("Enter")
    one.page.locator("#key-dialog[open]").wait_for()
    assert "refused" in one.page.inner_text("#key-why")
    one.enter()
    stored = one.page.evaluate("() => [Object.values(localStorage).join(), document.cookie, sessionStorage.length]")
    assert KEY not in stored[0] and stored[1:] == ["", 1]
    other = one.context.new_page()
    other.goto(server.url)
    other.locator("#key-dialog[open]").wait_for()
    one.close()


def test_an_answer_shows_how_its_tokens_came_to_be(tab: Tab) -> None:
    page = tab.page
    tab.picture("empty")
    tab.ask(SONG, max_tokens=160)
    page.locator(TOKENS).nth(10).wait_for()
    assert page.inner_text("#send") == "Stop" and page.locator(".busy").count() == 1
    tab.picture("streaming")
    tab.answered()
    spans = page.locator(TOKENS)
    accepted = page.locator(".turn.assistant .token.accepted")
    assert spans.count() > accepted.count() > 20
    depths = {int(one.get_attribute("data-depth")) for one in accepted.all()[:40]}
    assert {1, 2} <= depths <= {1, 2, 3, 4}
    deep, shallow = (page.locator(f".turn.assistant .accepted[data-depth='{d}']").first for d in (4, 1))
    look = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.textDecorationLine]; }"
    assert deep.evaluate(look)[0] != shallow.evaluate(look)[0]
    assert deep.evaluate(look)[1] == shallow.evaluate(look)[1] == "underline"
    plain = page.locator(".turn.assistant .token:not(.accepted):not(.rejected)").first
    assert plain.evaluate(look)[1] == "none" and "sampled" in (plain.get_attribute("title") or "")
    assert "accepted draft, depth 4" in (deep.get_attribute("title") or "")
    rejected = page.locator(".turn.assistant .rejected")
    assert rejected.count() > 0 and not rejected.first.is_visible()
    page.check("#show-rejected")
    assert rejected.first.is_visible() and rejected.first.evaluate(look)[1] == "line-through"
    assert float(page.inner_text("#n-step")) > 1 and float(page.inner_text("#n-speed").replace(",", "")) > 0
    assert page.inner_text("#n-cached").endswith(f"of {page.inner_text('#n-cached').split()[-1]}")
    assert page.locator("#strip path").nth(1).get_attribute("d")
    assert "Answer:" in (page.text_content("#announce") or "")
    tab.picture("chat")


def test_the_text_is_what_other_clients_get(tab: Tab, server: Running) -> None:
    tab.ask(SONG, seed=5)
    tab.answered()
    shown = "".join(tab.page.locator(TOKENS).all_text_contents())
    body = {"messages": [{"role": "user", "content": SONG}], "temperature": 0, "max_tokens": 80, "seed": 5}
    assert shown == server.chat(**body)["choices"][0]["message"]["content"]


def test_turns_follow_one_another_and_can_be_stopped_and_had_again(tab: Tab, server: Running) -> None:
    page = tab.page
    tab.ask("Name a colour.", max_tokens=12)
    tab.answered()
    first = page.locator(".turn.assistant .body").first.inner_text()
    page.fill("#prompt", "one")
    page.press("#prompt", "Shift+Enter")
    page.press("#prompt", "t")
    assert page.input_value("#prompt") == "one\nt" and page.locator(".turn").count() == 2
    tab.ask("And a long story about it.", max_tokens=900)
    page.locator(".turn.assistant").nth(1).locator(".token:not(.rejected)").nth(5).wait_for()
    page.keyboard.press("Escape")
    tab.answered(2)
    assert "stopped" in page.locator(".turn.assistant header").nth(1).inner_text()
    server.settled()
    assert page.locator(".turn").count() == 4 and page.evaluate("() => document.activeElement.id") == "prompt"
    page.fill("#max_tokens", "10")
    page.click("#again")
    tab.answered(2)
    assert page.locator(".turn").count() == 4 and page.locator(".turn.assistant .body").first.inner_text() == first
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0 and page.locator("#transcript .empty").is_visible()


def test_settings_reach_the_server(tab: Tab) -> None:
    sent: list[dict[str, Any]] = []
    tab.page.on("request", lambda one: sent.append(one.post_data_json) if one.method == "POST" else None)
    tab.page.click("#settings summary")
    tab.page.fill("#system", "You are a bird.")
    tab.page.uncheck("#draft")
    tab.ask("Hi", temperature=0.7, top_p=0.9, max_tokens=5, seed=3)
    tab.answered()
    (body,) = sent
    assert body["messages"][0] == {"role": "system", "content": "You are a bird."} and body["draft"] is False
    assert [body[name] for name in ("temperature", "top_p", "max_tokens", "seed")] == [0.7, 0.9, 5, 3]
    assert tab.page.locator(".turn.assistant .accepted").count() == 0


def test_a_race_compares_the_tokens(tab: Tab) -> None:
    page = tab.page
    page.click("#tab-race")
    page.fill("#race-tokens", "100")
    page.click("#race-go")
    page.locator("#race-verdict strong").wait_for(timeout=60_000)
    verdict = page.inner_text("#race-verdict")
    lanes = ["".join(page.locator(f"#lane-{name} .token:not(.rejected)").all_text_contents())
             for name in ("plain", "drafted")]  # fmt: skip
    assert lanes[0] == lanes[1] and len(lanes[0]) > 100 and "the same 100 tokens" in verdict
    assert float(verdict.partition("×")[0]) > 0 and "accepted" in verdict
    assert page.locator("#lane-plain .accepted").count() == 0 < page.locator("#lane-drafted .accepted").count()
    tab.picture("race")
    page.click("#race-watch")
    page.locator("#lane-plain .token:not(.rejected)").nth(99).wait_for(state="attached", timeout=60_000)
    assert page.locator("#lane-drafted .token:not(.rejected)").count() == 100


def test_the_monitor_shows_what_runs(tab: Tab, server: Running) -> None:
    page = tab.page
    tab.ask("Tell a very long story.", max_tokens=900)
    page.locator(TOKENS).nth(3).wait_for()
    page.click("#tab-monitor")
    page.locator("#requests progress").first.wait_for()
    assert page.locator("#requests tr").count() == 1 and "decode" in page.inner_text("#requests")
    page.locator(".map i.used").first.wait_for()
    assert "1 of 4" in page.inner_text("#tiles").replace("\n", " ")
    assert page.locator("#times path").nth(2).get_attribute("d")
    assert page.locator("#histogram path").nth(2).get_attribute("d")
    tab.picture("monitor")
    page.keyboard.press("Escape")
    page.get_by_text("No requests right now").wait_for()
    page.locator(".map i.idle").first.wait_for()
    server.settled()


def test_tabs_are_walked_with_arrows(tab: Tab) -> None:
    tab.page.focus("#tab-chat")
    for name in ("race", "monitor", "replay", "chat"):
        tab.page.keyboard.press("ArrowRight")
        assert tab.page.get_attribute(f"#tab-{name}", "aria-selected") == "true" and tab.page.is_visible(f"#{name}")
    assert tab.page.locator("[role=tabpanel]:visible").count() == 1


def test_a_chat_is_recorded_and_replayed_without_a_server(tab: Tab, server: Running, tmp_path: Path) -> None:
    page = tab.page
    tab.ask(SONG, max_tokens=60)
    tab.answered()
    shown = page.locator(TOKENS).all_text_contents()
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "recording.json")
    recording = json.loads((tmp_path / "recording.json").read_text())
    steps = recording["turns"][1]["record"]["steps"]
    assert [text for step in steps for text in step["texts"]] == shown
    assert KEY not in (tmp_path / "recording.json").read_text()
    tab.context.set_offline(True)
    page.click("#tab-replay")
    page.set_input_files("#replay-file", tmp_path / "recording.json")
    page.select_option("#replay-speed", "20")
    page.get_by_text("Play again", exact=True).wait_for(timeout=60_000)
    spans = "#replay-transcript .token:not(.rejected)"
    assert page.locator(spans).all_text_contents() == shown
    assert page.locator("#replay-transcript .accepted").count() == sum(step["accepted"] for step in steps) > 0
    page.locator("#replay-seek").evaluate("e => { e.value = 0; e.dispatchEvent(new Event('input')); }")
    assert page.locator(spans).count() == 0
    tab.picture("replay")
    for number, (text, said) in enumerate(
        (("x", "not JSON"), ("{}", "not a recording"), (_damaged(recording), "Turn 2"))
    ):
        (tmp_path / f"{number}.json").write_text(text)
        page.set_input_files("#replay-file", tmp_path / f"{number}.json")
        page.get_by_text(said).wait_for()
        assert page.is_disabled("#replay-play")
    tab.context.set_offline(False)
    page.locator("#status[data-state=ready]").wait_for(timeout=20_000)
    tab.problems = [one for one in tab.problems if "ERR_INTERNET_DISCONNECTED" not in one]


def _damaged(recording: dict[str, Any]) -> str:
    turns = json.loads(json.dumps(recording["turns"]))
    turns[1]["record"]["steps"][0]["accepted"] = 99
    return json.dumps({**recording, "turns": turns})


def test_a_server_that_is_gone_or_loads_is_named(browser: Any, server: Running, tmp_path: Path) -> None:
    one = Tab(browser, server, tmp_path)
    one.enter()
    service = server.service
    llm, service._llm, service.state = service._llm, None, "loading"
    try:
        one.page.get_by_text("loading its model").wait_for(timeout=20_000)
        one.picture("loading")
    finally:
        service._llm, service.state = llm, "ready"
    one.page.locator("#status[data-state=ready]").wait_for(timeout=20_000)
    one.context.set_offline(True)
    one.ask("Are you there?")
    one.page.locator(".problem").wait_for()
    assert "cannot be reached" in one.page.inner_text(".problem") and one.page.is_visible("#notice")
    one.picture("gone")
    one.context.set_offline(False)
    one.page.click("#again")
    one.answered()
    assert one.page.locator(TOKENS).count() > 0 and one.page.locator(".problem").count() == 0
    one.problems = [text for text in one.problems if "ERR_INTERNET_DISCONNECTED" not in text]
    one.close()


def test_thinking_stands_apart_and_its_tags_are_no_text(tab: Tab) -> None:
    found = tab.page.evaluate("""async () => {
      const { Tokens } = await import("/page/tokens.js");
      const body = document.createElement("div"), tokens = new Tokens(body);
      const step = (texts, part, accepted = 0, rejected = []) =>
        tokens.add({ at: 1, ids: texts.map((_, i) => i), texts, accepted, rejected, part });
      step(["<think>"], "content");
      step(["a", "b", "c"], "reasoning", 2, ["x"]);
      step(["d", "</think>", "<b>"], "content", 3);
      step(["f"], "content");
      const inner = body.querySelector(".thinking > div");
      const spans = (place) => [...place.children].filter((one) => one.matches(".token")).map((one) => one.outerHTML);
      return [inner.textContent, [...body.children].map((one) => one.textContent).slice(1).join("|"), spans(inner)];
    }""")
    assert found[0] == "abxcd" and found[1] == "|<b>|f"
    accepted = [("depth 1" in one, "depth 2" in one, "rejected" in one, "sampled" in one) for one in found[2]]
    assert accepted == [
        (False, False, False, True), (True, False, False, False), (False, True, False, False),
        (False, False, True, False), (False, False, False, True), (True, False, False, False),
    ]  # fmt: skip


def test_an_error_of_the_server_is_shown_where_the_answer_would_be(tab: Tab) -> None:
    tab.ask("word " * 2000)
    tab.page.locator(".problem").wait_for()
    assert "context" in tab.page.inner_text(".problem") and tab.page.locator(".turn.assistant").count() == 1
    tab.problems = [text for text in tab.problems if "400" not in text]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_they_are_chosen(
    browser: Any, server: Running, tmp_path: Path, scheme: str
) -> None:
    one = Tab(browser, server, tmp_path, color_scheme=scheme)
    one.enter()
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)"

    def is_dark() -> bool:
        return max(one.page.evaluate(brightness)) < 64

    assert is_dark() == (scheme == "dark")
    for chosen in ("Light", "Dark", "Auto"):
        one.page.click("#theme-button")
        assert one.page.inner_text("#theme-button") == chosen
        assert is_dark() == ((scheme if chosen == "Auto" else chosen.lower()) == "dark")
    one.picture(scheme)
    one.close()


def test_it_fits_a_phone(browser: Any, server: Running, tmp_path: Path) -> None:
    one = Tab(browser, server, tmp_path, viewport={"width": 360, "height": 740}, has_touch=True)
    one.enter()
    one.ask(SONG, max_tokens=40)
    one.answered()
    for name in ("chat", "race", "monitor", "replay"):
        one.page.click(f"#tab-{name}")
        wide = one.page.evaluate(
            "() => [document.documentElement.scrollWidth, document.querySelector('main').scrollWidth]"
        )
        assert max(wide) <= 360, name
        one.picture(f"phone_{name}")
    one.close()
