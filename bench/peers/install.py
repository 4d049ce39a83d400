"""Environments and model files of the peers, made on request under one folder of the cache.

<cache>/peers/<folder>/         a virtual environment; `ready.json` in it says that it is complete, and of what
<cache>/peers/<folder>.log      what pip said last
<cache>/peers/<folder>.failed   why the last set-up did not work
<cache>/peers/files/            the model in the formats that some peers want
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from peers.client import Keeper
from peers.systems import TORCH, Peer

HERE = Path(__file__).parent
_CUDA = ("nvidia-", "cuda-")


class SetupError(Exception):
    """A peer or a file cannot be had here, with the reason."""


def set_up(peer: Peer, home: Path, torch_index: str, keeper: Keeper) -> Path:
    """Make the environment of `peer` unless it is there; returns its interpreter. Raises SetupError."""
    folder, log, failed = (home / f"{peer.folder}{end}" for end in ("", ".log", ".failed"))
    steps = [asdict(step) for step in peer.steps]
    ready = folder / "ready.json"
    if ready.exists() and json.loads(ready.read_text()) == steps:
        return folder / "bin" / "python"
    try:
        fresh = ["--clear"] if ready.exists() else []
        _run(f"{peer.name}: environment", [sys.executable, "-m", "venv", *fresh, str(folder)], log, keeper)
        python = folder / "bin" / "python"
        for step in peer.steps:
            words = [*step.arguments]
            if words[-1] == TORCH:
                words += ["--index-url", torch_index] if torch_index else []
                _refuse_cuda(python, words, keeper)
            variables = [f"{name}={value}" for name, value in step.variables.items()]
            what = f"{peer.name}: pip {' '.join(words)}"
            _run(what, ["env", *variables, str(python), "-m", "pip", *words], log, keeper)
    except SetupError as error:
        failed.write_text(str(error))
        raise
    failed.unlink(missing_ok=True)
    ready.write_text(json.dumps(steps))
    return python


def interpreter(peer: Peer, home: Path) -> Path:
    """The interpreter of a peer that has been set up. Raises SetupError with why it has not."""
    failed = home / f"{peer.folder}.failed"
    if failed.exists():
        raise SetupError(f"set-up failed: {failed.read_text().strip()}")
    if not (home / peer.folder / "ready.json").exists():
        raise SetupError(f"not set up: python bench/cpu_peers.py --setup {peer.name}")
    return home / peer.folder / "bin" / "python"


def model_file(kind: str, gguf: Path, home: Path, keeper: Keeper) -> Path:
    """The model as `kind`: "gguf" as shipped, "hf" (a checkpoint folder in bf16), "Q4_0" or "Q8_0". Raises SetupError.

    What is not there is made: bf16 by stretto, the others by llama.cpp from the shipped file.
    """
    if kind == "gguf":
        return gguf
    files = home / "files"
    files.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\.[^.]+\.gguf$", "", gguf.name)  # without its own format
    target = files / (f"{name}.hf" if kind == "hf" else f"{name}.{kind}.gguf")
    if not target.exists():
        if kind == "hf":
            words = ["-m", "stretto", "convert", str(gguf), str(target), "--to", "hf", "--dtype", "bf16"]
            command = [sys.executable, *words]
        else:
            ready = sorted(home.glob("llama.cpp-*/ready.json"))
            usable = [path.parent for path in ready if path.parent.name != "llama.cpp-newest"]
            if not usable:
                raise SetupError("llama.cpp makes this file: python bench/cpu_peers.py --setup llama.cpp")
            python = usable[0] / "bin" / "python"
            command = [str(python), str(HERE / "llama_cpp_quantize.py"), str(gguf), str(target), kind]
        _run(f"{kind} of the model", command, files / f"{kind}.log", keeper)
    return target


def _refuse_cuda(python: Path, words: Sequence[str], keeper: Keeper) -> None:
    """Raise SetupError if this torch requires CUDA packages: only its metadata is fetched to find out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        look = ["--dry-run", "--no-deps", "--quiet", "--use-feature", "fast-deps", "--report", str(report)]
        _run("which torch it is", [str(python), "-m", "pip", *words, *look], Path(folder) / "log", keeper)
        for item in json.loads(report.read_text())["install"]:
            lines = item["metadata"].get("requires_dist", [])
            if any(line.startswith(_CUDA) and "extra ==" not in line for line in lines):
                raise SetupError("the package index only has torch with CUDA: --torch-index URL of the CPU builds")


def _run(what: str, command: Sequence[str], log: Path, keeper: Keeper) -> None:
    """One command at low priority, its output in `log`; a progress line on stderr. Raises SetupError."""
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        output = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        code = keeper.run(["nice", "-n", "19", *command], **output)
    print(f" {'failed' if code else 'done'} ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    if code:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said or ["no output"]
        raise SetupError(f"{what} ended with {code}: {errors[-1][:200]}")
