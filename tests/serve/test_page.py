"""The web page: what is served, to whom, with which headers; what its files may not hold; that wheels hold them."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from scripted import saying
from serving import Running, serving

import stretto
from stretto.serve.files import HEADERS, contents

PAGE = Path(stretto.__file__).parent / "serve" / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'  # the name of a language, which nobody fetches


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(saying(tmp_path_factory.mktemp("locked"), "open"), key="sesame") as one:
        yield one


def test_the_page_needs_no_key(locked: Running) -> None:
    response = locked.http.get("/", headers={"authorization": ""})
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (PAGE / "index.html").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_its_parts_need_no_key_either(locked: Running, name: str) -> None:
    response = locked.http.get(f"/page/{name}", headers={"authorization": ""})
    assert response.status_code == 200 and response.content == (PAGE / name).read_bytes()
    kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
    assert response.headers["content-type"].partition(";")[0] == kind[name.rpartition(".")[2]]


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_browsers_are_told_to_load_nothing_from_elsewhere(locked: Running, path: str) -> None:
    headers = locked.http.get(path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert HEADERS.items() <= dict(headers).items()


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/..%2fauth.py", "/page/%2e%2e/auth.py", "/page/../auth.py", "/page/a%00"]
)
def test_no_other_file_is_served(locked: Running, path: str) -> None:
    head = locked.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\nconnection: close\r\n\r\n"
                      .encode()).split(b"\r\n", 1)[0]  # fmt: skip
    assert head.split()[1] == b"404"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_the_page_is_there_to_be_read(locked: Running, method: str) -> None:
    assert locked.http.request(method, "/", headers={"authorization": ""}).status_code == 401
    assert locked.http.request(method, "/").status_code == 405


def test_a_server_without_keys_serves_it_to_this_machine_only(tmp_path: Path) -> None:
    with serving(saying(tmp_path, "open")) as one:
        assert one.http.get("/").status_code == 200
        assert one.http.get("/", headers={"host": "elsewhere.example"}).status_code == 403


def test_a_server_that_loads_has_the_page_already(tmp_path: Path) -> None:
    with serving(saying(tmp_path, "open")) as one:
        one.service._llm, llm, one.service.state = None, one.service._llm, "loading"
        try:
            assert one.http.get("/").status_code == one.http.get("/page/main.js").status_code == 200
            refused = one.http.get("/stretto/state")
        finally:
            one.service._llm, one.service.state = llm, "ready"
    assert refused.status_code == 503 and refused.json()["error"]["message"] == "Loading model"


# -- the files ---------------------------------------------------------------------------------------------------------


def test_every_file_is_served() -> None:
    assert sorted(contents()) == FILES and {"index.html", "page.css", "main.js", "icon.svg"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = (PAGE / name).read_text().replace(NAMESPACE, "")
    assert not re.search(r"https?:|wss?:|['\"(]//|@import|data:[a-z]|\burl\(", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_text_becomes_markup_or_code(name: str) -> None:
    text = (PAGE / name).read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_there(name: str) -> None:
    text = (PAGE / name).read_text()
    for names, source in re.findall(r"^import \{([^}]*)\} from \"([^\"]+)\";", text, re.M):
        assert source.startswith("./") and source[2:] in SCRIPTS
        exported = (PAGE / source[2:]).read_text()
        for one in names.split(","):
            assert re.search(
                rf"^export (?:async )?(?:const|class|function\*?) {re.escape(one.strip())}(?!\w)", exported, re.M
            )
    assert len(re.findall(r"^import\b", text, re.M)) == len(re.findall(r"^import \{[^}]*\} from \"", text, re.M))


class _Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_the_markup_holds_no_code_and_no_style() -> None:
    markup = _Markup()
    markup.feed((PAGE / "index.html").read_text())
    for tag, name, value in markup.attributes:
        assert not name.startswith("on") and name != "style"
        if name in ("src", "href") and not value.startswith("#"):
            assert value.removeprefix("page/") in FILES, (tag, value)
    assert "<style" not in (PAGE / "index.html").read_text() and len(markup.ids) == len(set(markup.ids))


def test_what_labels_and_scripts_name_is_there() -> None:
    markup = _Markup()
    markup.feed((PAGE / "index.html").read_text())
    known = set(markup.ids)
    named = {value for _, name, value in markup.attributes if name in ("for", "aria-controls", "aria-labelledby")}
    for name in SCRIPTS:
        named |= set(re.findall(r"\$\(\"([\w-]+)\"\)", (PAGE / name).read_text()))
    assert named <= known


def test_wheels_hold_the_page() -> None:
    root = Path(stretto.__file__).parents[1]
    held = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
    assert {f"stretto/serve/page/{name}" for name in FILES} <= held and "stretto/serve/app.py" in held
