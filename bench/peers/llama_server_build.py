"""`python llama_server_build.py PYTHON_OF_LLAMA_CPP`: llama.cpp's own server, beside the library that pip built there.

llama-cpp-python builds all of llama.cpp but its server. The source of the same version is fetched with pip, its server
is compiled without a web page, and linked to the libraries that bench/cpu_peers.py measures: no other flags, no other
kernels. It appears as `llama-server` beside that interpreter when it is complete.
"""

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

_PACKAGE = "llama-cpp-python"
_FLAGS = (
    "-std=c++17", "-O2", "-DNDEBUG", "-DGGML_USE_CPU", "-w",
    # as in the source's own list for its HTTP library
    "-DCPPHTTPLIB_FORM_URL_ENCODED_PAYLOAD_MAX_LENGTH=1048576", "-DCPPHTTPLIB_LISTEN_BACKLOG=512",
    "-DCPPHTTPLIB_REQUEST_URI_MAX_LENGTH=32768", "-DCPPHTTPLIB_TCP_NODELAY=1",
)  # fmt: skip
_INCLUDE = ("include", "ggml/include", "common", "vendor", "tools/mtmd", "tools/server", "")
_LIBRARIES = ("llama-common", "llama", "mtmd", "ggml", "ggml-base")


def main(python: str) -> None:
    """Fetch, compile, link. Raises CalledProcessError with what failed, whose words are on stderr."""
    where = "import importlib.metadata as m, sysconfig; print(m.version('%s'), sysconfig.get_path('purelib'))"
    told = subprocess.run([python, "-c", where % _PACKAGE], check=True, capture_output=True, text=True).stdout
    version, packages = told.split()
    library = Path(packages) / "lib"
    target = Path(python).parent / "llama-server"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fetch = ["download", "--no-deps", "--no-binary", _PACKAGE, f"{_PACKAGE}=={version}", "-d", folder]
        subprocess.run([python, "-m", "pip", *fetch], check=True)
        with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        source = next(work.glob("*/vendor/llama.cpp"))
        _no_page(source, work)
        files = [*sorted((source / "tools" / "server").glob("*.cpp")), work / "ui.cpp"]
        include = [f"-I{source / part}" for part in _INCLUDE] + [f"-I{work}"]
        objects = [work / f"{file.stem}.o" for file in files]
        for file, compiled in zip(files, objects, strict=True):
            _run(["c++", *_FLAGS, *include, "-c", str(file), "-o", str(compiled)])
        # as the build names them: libllama.so.0.5.0 needs libggml.so.0
        link = [f"-L{library}", f"-Wl,-rpath,{library}", *(f"-l{name}" for name in _LIBRARIES), "-lpthread"]
        partial = work / "llama-server"
        _run(["c++", *map(str, objects), *link, "-o", str(partial)])
        _run([str(partial), "--version"])
        os.replace(_beside(partial, target), target)


def _no_page(source: Path, work: Path) -> None:
    """The two files that the source's build writes for a server without a page."""
    values = {"#cmakedefine LLAMA_UI_HAS_ASSETS 1": "", "@N_ASSETS@": "0", "@ASSET_ARRAYS@": "", "@ASSET_TABLE@": "",
              "@USE_GZIP@": "false"}  # fmt: skip
    for name in ("ui.h", "ui.cpp"):
        text = (source / "tools" / "ui" / f"{name}.in").read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(key, value)
        (work / name).write_text(text, encoding="utf-8")


def _beside(file: Path, target: Path) -> Path:
    """A copy on the same file system as the target, which can take its place at once."""
    copy = target.with_suffix(".partial")
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o755)
    return copy


def _run(command: list[str]) -> None:
    print(shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
