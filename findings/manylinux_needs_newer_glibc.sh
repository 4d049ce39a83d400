#!/usr/bin/env bash
# A wheel of llama.cpp that is tagged manylinux2014 needs a much newer C library than its tag allows.
#
# Expected: a wheel tagged manylinux2014 loads with glibc 2.17 and everything after it; pip installs it by that promise.
# Happens: pip installs it on any such system, and the library inside asks for symbols of GLIBC_2.38, so loading fails
# on Debian 12, Ubuntu 22.04 and RHEL 9 ("version `GLIBC_2.38' not found").
# Seen with: llama-cpp-py-sync 0.11739.
# Why it matters: the newest llama.cpp on the index cannot be compared on such a machine, and a benchmark that only asks
# whether the package is installed counts it as there.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" download -qq --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux2014_x86_64 -d "$tmp" llama-cpp-py-sync==0.11739
cd "$tmp"
"$tmp/venv/bin/python" - <<'EOF'
import re
import zipfile
from pathlib import Path

(wheel,) = Path().glob("*.whl")
print(wheel.name)
assert "manylinux2014_x86_64" in wheel.name or "manylinux_2_17" in wheel.name, "changed: its tag"
newest = {}
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if ".so" in Path(name).name:
            found = re.findall(rb"GLIBC_2\.(\d+)\0", archive.read(name))
            newest[name] = max(map(int, found), default=0)
            print(f"{name}: GLIBC_2.{newest[name]}")
assert max(newest.values()) == 38, "changed: what its libraries need"
EOF
