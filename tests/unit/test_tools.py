"""The set-up and the generator of the pages."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import make_docs
import records
import setup_env
from stretto.core.card import REGISTRIES, Can, Card, Registry
from stretto.core.env import Env
from stretto.core.settings import Settings

ROOT = Path(__file__).parents[2]


def record(**changes: Any) -> dict[str, Any]:
    result = {
        "quantity": "decode",
        "value": 2.0,
        "unit": "tokens/s",
        "median_of": 3,
        "spread": [1.0, 3.0],
        "bound": 4.0,
    }
    whole: dict[str, Any] = {
        "name": "toy", "date": "2025-01-02", "commit": "0123456789abcdef", "machine": {"cpu": "abacus", "cores": 2},
        "command": "count beads", "results": [result], "samples": {"decode": [1.0, 2.0, 3.0]},
    }  # fmt: skip
    return {**whole, **changes}


def write(folder: Path, name: str, data: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


# -- records and the table of numbers ----------------------------------------------------------------------------------


def test_a_record_becomes_a_section_with_shares_of_bounds(tmp_path: Path) -> None:
    write(tmp_path, "a.json", record())
    page = make_docs.measured(records.read_records(tmp_path))
    assert "## toy\n\nabacus, 2 cores; 2025-01-02, commit 012345678; `count beads`\n" in page
    assert page.splitlines()[-1] == "| decode | 2 tokens/s | 1 to 3, of 3 | 50% of 4 |"


def one(quantity: str, value: float, unit: str) -> dict[str, Any]:
    return {"quantity": quantity, "value": value, "unit": unit, "median_of": 1, "spread": [value, value], "bound": None}


def test_ours_stands_beside_the_best_of_the_others(tmp_path: Path) -> None:
    results = [
        one("decode: stretto Q4", 30.0, "tokens/s"),
        one("decode: other", 10.0, "tokens/s"),
        one("decode: another", 20.0, "tokens/s"),
        one("load: stretto", 1500.0, "ms"),
        one("load: stretto, warm", 100.0, "ms"),
        one("load: other", 300.0, "ms"),
        one("load: another", 500.0, "ms"),
        one("rows: stretto", 4.0, "passes"),
    ]
    write(tmp_path, "a.json", record(results=results, machine={"cpu": "abacus", "systems": {}}))
    write(tmp_path, "b.json", record(name="alone"))
    readme = f"{make_docs.BEGIN}\n{make_docs.END}"
    page = make_docs.with_comparison(readme, records.read_records(tmp_path))
    assert "alone" not in page
    assert [line for line in page.splitlines() if line.startswith("|")][2:] == [
        "| decode (Q4) | **1.50** (30 : 20 tokens/s, another) |",
        "| load | **0.20** (1,500 : 300 ms, other) |",
        "| load (warm) | **3.00** (100 : 300 ms, other) |",
        "| rows | 4 passes (no other) |",
    ]


def test_every_kind_of_cpu_has_a_column(tmp_path: Path) -> None:
    """Who was not held to the level is no part of the ratio, and is said with the reason; so is who is absent."""
    few = [one("decode: stretto", 30.0, "tokens/s"), one("decode: fast", 60.0, "tokens/s")]
    many = [*few, one("decode: slow", 40.0, "tokens/s"), one("load: stretto", 2.0, "s"), one("load: slow", 1.0, "s")]
    systems = {"fast": {"not_in_ratio": "uses more"}, "slow": {}}
    small = {"cpu": "abacus", "kind": "avx2", "systems": systems, "absent": {"other x": "no library"}}
    write(tmp_path, "a.json", record(results=many, machine=small))
    write(tmp_path, "b.json", record(results=few, machine={"cpu": "loom", "kind": "amx", "systems": {"fast": {}}}))
    found = records.newest(records.read_records(tmp_path))
    assert [one.kind for one in found] == ["amx", "avx2"]
    readme = f"{make_docs.BEGIN}\n{make_docs.END}"
    page = make_docs.with_comparison(readme, found, ["docs/cpu_peers-amx.svg"])
    assert [line for line in page.splitlines() if line.startswith("|") and "---" not in line] == [
        "| times as good as the best other | amx | avx2 |",
        "| decode | **0.50** (30 : 60 tokens/s, fast) | **0.75** (30 : 40 tokens/s, slow) |",
        "| load |  | **0.50** (2 : 1 s, slow) |",
    ]
    assert "Not in the ratio of `avx2`: fast (uses more)" in page and "Absent: other x (no library)" in page
    assert "](docs/cpu_peers-amx.svg)" in page and page.count("**toy.**") == 1
    assert "## toy, amx" in make_docs.measured(found) and "decode: fast" in make_docs.measured(found)


def test_the_newest_record_of_a_name_counts(tmp_path: Path) -> None:
    write(tmp_path, "a.json", record(date="2025-02-01", command="new"))
    write(tmp_path, "b.json", record(date="2025-01-01", command="old"))
    assert [r.command for r in records.newest(records.read_records(tmp_path))] == ["new"]


def no_field() -> dict[str, Any]:
    data = record()
    del data["samples"]
    return data


def outside_spread() -> dict[str, Any]:
    data = record()
    data["results"][0]["value"] = 5.0
    return data


@pytest.mark.parametrize("data", [no_field(), record(extra=1), record(date="yesterday"), outside_spread()])
def test_a_malformed_record_is_refused_with_its_file(tmp_path: Path, data: dict[str, Any]) -> None:
    write(tmp_path, "bad.json", data)
    with pytest.raises(ValueError, match=r"bad\.json: not a benchmark record"):
        records.read_records(tmp_path)


def test_only_the_marked_part_of_the_readme_changes(tmp_path: Path) -> None:
    readme = f"before\n{make_docs.BEGIN}\nstale\n{make_docs.END}\nafter\n"
    page = make_docs.with_comparison(readme, [])
    assert page == f"before\n{make_docs.BEGIN}\nNo record yet.\n{make_docs.END}\nafter\n"
    assert make_docs.with_comparison(page, []) == page


def test_all_records_of_the_repository_can_be_read() -> None:
    for found in records.read_records(ROOT / "bench" / "records"):
        assert not re.search(r"(^|[ =])[/~]", found.command), "commands name files of the repository alone"


# -- the catalogue -----------------------------------------------------------------------------------------------------


class Fixed(Registry):
    """A registry with given cards."""

    def __init__(self, cards: list[Card]) -> None:
        super().__init__("mixer", "some.mixers")
        self._cards = cards

    def cards(self, can: Can = Can(0)) -> list[Card]:
        return self._cards


def test_the_catalogue_shows_what_a_card_says() -> None:
    card = Card(name="toy", make=dict, idea="a | b", paper="2312.06635", can=Can.CAUSAL | Can.TREE)
    page = make_docs.catalogue([Fixed([card])])
    header, _, row = [line for line in page.splitlines() if line.startswith("|")]
    assert header == "| name | idea | source | can | output |"  # nobody has a state or a cost
    assert row == ("| `toy` | a \\| b | [2312.06635](https://arxiv.org/abs/2312.06635) | causal, tree | exact |")


def test_the_settings_page_is_up_to_date_and_has_a_row_for_each() -> None:
    path = ROOT / "docs" / "SETTINGS.md"
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(fields(Settings)) + len(fields(Env))
    assert make_docs.pages(ROOT)[path] == path.read_text(encoding="utf-8")


def test_every_socket_has_a_heading() -> None:
    assert {registry.socket for registry in REGISTRIES} == set(make_docs.SOCKETS)


def test_check_shows_the_difference_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("old\n", encoding="utf-8")
    monkeypatch.setattr(make_docs, "ROOT", tmp_path)
    monkeypatch.setattr(make_docs, "pages", lambda root: {page: "new\n"})
    assert make_docs.main(["--check"]) == 1
    assert "-old\n+new" in capsys.readouterr().out and page.read_text() == "old\n"
    assert make_docs.main([]) == 0 and page.read_text() == "new\n"
    assert make_docs.main(["--check"]) == 0


# -- set-up ------------------------------------------------------------------------------------------------------------


def report(*requires: str) -> dict[str, Any]:
    return {"install": [{"metadata": {"name": "torch", "version": "9", "requires_dist": list(requires)}}]}


def test_cuda_packages_are_found_by_name() -> None:
    linux = 'platform_system == "Linux"'
    brings = report("numpy", f"nvidia-cublas==13; {linux}", f"triton==3; {linux}", 'cuda-python; extra == "cuda"')
    assert setup_env.cuda_packages(brings) == ["nvidia-cublas==13", "triton==3"]
    assert not setup_env.cuda_packages({"install": [{"metadata": {"name": "torch", "version": "9"}}]})


def commands_run(
    monkeypatch: pytest.MonkeyPatch, *, brings: dict[str, Any], gpu: bool, ci: bool
) -> tuple[bool, list[list[str]]]:
    """What `install_torch` answers and installs on a machine with these properties; nothing is really run."""
    ran: list[list[str]] = []

    def stage(what: str, command: list[str]) -> None:
        if "--report" in command:
            Path(command[command.index("--report") + 1]).write_text(json.dumps(brings), encoding="utf-8")
        else:
            ran.append(command)

    monkeypatch.setattr(setup_env, "stage", stage)
    monkeypatch.setattr(setup_env.platform, "system", lambda: "Linux")
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: "nvidia-smi" if gpu else None)
    monkeypatch.setenv("CI", "true" if ci else "")
    return setup_env.install_torch("python", "torch==9", "https://example.org/simple"), ran


def test_a_cpu_build_is_installed_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed, ran = commands_run(monkeypatch, brings=report("numpy"), gpu=False, ci=True)
    assert agreed and [c[-3:] for c in ran] == [["torch==9", "--index-url", "https://example.org/simple"]]


def test_cuda_libraries_are_not_downloaded_without_a_gpu_and_a_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agreed, ran = commands_run(monkeypatch, brings=report("nvidia-cublas==13"), gpu=False, ci=True)
    assert not agreed and not ran
    shown = capsys.readouterr()
    assert "nvidia-cublas==13" in shown.out and "TORCH_INDEX" in shown.out and "nothing was downloaded" in shown.err


@pytest.mark.parametrize(("answer", "installs"), [("y", True), ("", False), ("no", False)])
def test_at_a_terminal_the_user_decides(monkeypatch: pytest.MonkeyPatch, answer: str, installs: bool) -> None:
    monkeypatch.setattr(setup_env.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    agreed, ran = commands_run(monkeypatch, brings=report("triton==3"), gpu=False, ci=False)
    assert agreed is installs and bool(ran) is installs


def test_with_a_gpu_the_cuda_build_is_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed, ran = commands_run(monkeypatch, brings=report("nvidia-cublas==13"), gpu=True, ci=True)
    assert agreed and len(ran) == 1
