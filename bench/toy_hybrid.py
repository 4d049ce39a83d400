"""A random hybrid, Mamba-2 beside attention, as a checkpoint directory: made by transformers, its tokens are bytes."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from stretto.models.family import TINY
from stretto.models.granite_hybrid import FAMILY

WORDS = 256


def write_hybrid(folder: Path) -> Path:
    """Four layers, two of them with states; 1,024 tokens of context."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    ids = {"bos_token_id": WORDS, "eos_token_id": WORDS + 1, "pad_token_id": WORDS}
    sizes = {"vocab_size": WORDS + 2, "max_position_embeddings": 1024}
    torch.manual_seed(1)
    config = AutoConfig.for_model(next(iter(FAMILY.hf.values())), **{**TINY, **FAMILY.tiny, **ids, **sizes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
