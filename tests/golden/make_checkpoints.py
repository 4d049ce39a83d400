"""Write checkpoints.json: small files as this build's `convert` writes them, and its greedy tokens.

    python tests/golden/make_checkpoints.py COMMIT

To be run with the package of an earlier version (PYTHONPATH), whose name is COMMIT: later ones must read its files.
"""

import base64
import json
import sys
import tempfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from command import write_tiny

from stretto import LLM, Sampling
from stretto.convert.convert import convert

HERE = Path(__file__).parent
PROMPTS = ["abc", "The quick brown fox", "\n\n1 2 3"]
TARGETS = {"gguf q4_0": ("gguf", "q4_0"), "hf int8": ("hf", "int8")}


def main() -> None:
    """Convert the model of tests/command.py into each format."""
    found: dict[str, object] = {"commit": sys.argv[1], "prompts": PROMPTS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tiny").mkdir()
        source = write_tiny(root / "tiny")
        for name, (to, dtype) in TARGETS.items():
            target = root / ("model.gguf" if to == "gguf" else name)
            convert(source, target, to, dtype, overwrite=True)  # type: ignore[arg-type]
            files = [target] if target.is_file() else sorted(target.iterdir())
            tokens = {}
            for backend in ("torch", "native")[: 1 if name == "hf int8" else 2]:  # its rows of 48 have no native layout
                llm = LLM(target, draft="none", backend=backend, context=64)
                done = llm.generate(PROMPTS, Sampling(temperature=0, max_tokens=12, ignore_eos=True))
                tokens[backend] = [list(result.token_ids) for result in done]
            texts = {file.name: base64.b64encode(zlib.compress(file.read_bytes(), 9)).decode() for file in files}
            found[name] = {"files": texts, "tokens": tokens}
    (HERE / "checkpoints.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
