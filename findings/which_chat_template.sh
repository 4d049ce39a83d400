#!/usr/bin/env bash
# A folder with two chat templates: two libraries read two different ones.
#
# Expected: if tokenizer_config.json has a chat_template and the folder has chat_template.jinja as well, as after an
# update that only adds the new file, all tools agree on which of them counts.
# Happens: transformers takes chat_template.jinja, gguf takes tokenizer_config.json. Neither says that there are two.
# Seen with: transformers 5.24.0, gguf 0.19.0.
# Why it matters: the GGUF file made from a checkpoint prompts the model in another form than the checkpoint does, and
# both look right by themselves.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # a plain sh may not know pipefail
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq gguf==0.19.0 jinja2==3.1.6 transformers==5.24.0 tokenizers==0.23.3
cd "$tmp"
HF_HOME="$tmp" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$tmp/venv/bin/python" - <<'EOF'
import json
from importlib.metadata import version
from pathlib import Path

from gguf import SpecialVocab
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

print("gguf", version("gguf"), "transformers", version("transformers"))
Tokenizer(models.WordLevel({"hello": 0}, unk_token="hello")).save("tokenizer.json")
config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "from tokenizer_config.json"}
Path("tokenizer_config.json").write_text(json.dumps(config))
Path("chat_template.jinja").write_text("from chat_template.jinja")

messages = [{"role": "user", "content": "hello"}]
prompt = AutoTokenizer.from_pretrained(".").apply_chat_template(messages, tokenize=False)
stored = SpecialVocab(".").chat_template
print("transformers renders:", prompt)
print("gguf would store:    ", stored)
assert prompt == "from chat_template.jinja"
assert stored == "from tokenizer_config.json", "changed: both read the same template"
EOF
