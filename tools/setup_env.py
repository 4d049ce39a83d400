"""Sets up the virtual environment of `make demo` and `make test`: one progress line per stage, pip's words on failure.

Standard library only, and no syntax newer than Python 3.7: an old interpreter gets a clear answer.

torch comes first. Its Linux wheels on the usual index bring gigabytes of CUDA libraries; on a machine without an
NVIDIA GPU pip is asked which wheel it *would* install (only the metadata is fetched), and if that wheel requires CUDA
packages, nothing is downloaded without a yes (never in CI, or without a terminal).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
NO_CONSENT = 3


def main() -> int:
    parser = argparse.ArgumentParser(description="set up the virtual environment")
    parser.add_argument("--venv", required=True, help="folder of the environment; created if absent")
    parser.add_argument("--torch", default="", help="requirement or path of a wheel; installed first")
    parser.add_argument("--torch-index", default="", help="package index that torch comes from")
    parser.add_argument("--extra", default="", help="extra of this project, such as dev")
    args = parser.parse_args()
    if sys.version_info < (3, 11):
        have = ".".join(str(n) for n in sys.version_info[:2])
        return fail(f"Python {have} is too old", "3.11 or newer is needed", "make ... PYTHON=python3.12")
    python = make_venv(args.venv)
    if args.torch:
        # Older versions of pip download the whole wheels in order to report on them.
        stage("pip", [*pip_install(python), "pip>=23.3"])
        if not install_torch(python, args.torch, args.torch_index):
            return NO_CONSENT
    target = f".[{args.extra}]" if args.extra else "."
    stage(f"stretto{target[1:]}", [*pip_install(python), "--editable", target])
    return 0


def make_venv(folder: str) -> str:
    """Path of the environment's interpreter; creates the environment if it is not there."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(os.path.join(folder, "bin", "pip")):  # the last thing that venv writes
        stage(f"virtual environment {folder}", [sys.executable, "-m", "venv", folder])
    return python


def pip_install(python: str) -> list[str]:
    """The quiet command. It compiles modules too: where Python may not write bytecode, each start would do it again."""
    return [python, "-m", "pip", "install", "--quiet"]


def install_torch(python: str, requirement: str, index: str) -> bool:
    """Install torch. False: it needs CUDA packages that this machine has no use for, and nobody agreed to them."""
    install = [*pip_install(python), requirement]
    if index:
        install += ["--index-url", index]
    if platform.system() == "Linux" and shutil.which("nvidia-smi") is None:
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "report.json")
            # Where the index serves no metadata, fast-deps reads it from the wheel without the rest of the wheel.
            look = ["--dry-run", "--no-deps", "--use-feature", "fast-deps", "--report", report]
            stage(f"what {requirement} requires", [*install, *look])
            with open(report, encoding="utf-8") as file:
                found = cuda_packages(json.load(file))
        if found and not agreed(found):
            return False
    stage(requirement, install)
    return True


def cuda_packages(report: dict[str, Any]) -> list[str]:
    """The requirements in a pip report that only an NVIDIA GPU can use; those of optional extras do not count."""
    found = []
    for item in report["install"]:
        for line in item["metadata"].get("requires_dist", []):
            requirement, _, marker = line.partition(";")
            if requirement.lower().startswith(CUDA_PREFIXES) and "extra ==" not in marker:
                found.append(requirement.strip())
    return sorted(found)


def agreed(packages: list[str]) -> bool:
    """Show what would be downloaded and ask; without a terminal, or in CI, the answer is no, with instructions."""
    print("This machine has no NVIDIA GPU (nvidia-smi is absent), but this build of torch would also download:")
    for package in packages:
        print(f"  {package}")
    print("Together these are several gigabytes. A CPU build does without them:")
    print("  make ... TORCH_INDEX=URL   the index of the CPU builds, which pytorch.org shows under `Get Started`")
    print("  make ... TORCH=PATH        a wheel file that you have", flush=True)
    if os.environ.get("CI") or not sys.stdin.isatty():
        fail("nothing was downloaded", "there is nobody to ask", "TORCH_INDEX or TORCH as shown above")
        return False
    return input("Download them anyway? [y/N] ").strip().lower() in ("y", "yes")


def stage(what: str, command: list[str]) -> None:
    """Run one command quietly; its output is shown only if it fails, and then we stop."""
    print(f"set-up: {what} ...", end="", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(f" {'failed' if done.returncode else 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
    if done.returncode:
        sys.stderr.write(done.stdout.decode("utf-8", "replace"))
        sys.exit(fail(f"set-up stopped at: {what}", f"the command was: {' '.join(command)}", "see the lines above"))


def fail(error: str, why: str, try_: str) -> int:
    """Print the three lines of an error; returns the exit code."""
    sys.stderr.write(f"error: {error}\nwhy: {why}\ntry: {try_}\n")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
