"""What other software does against a good guess and what is right here, where no other file of tests is its home."""

import json
import struct
from pathlib import Path

import native
import pytest
import torch
from safetensors.torch import save_file

from stretto.convert.safetensors_ import SafetensorsFile
from stretto.core.drafter import Ask
from stretto.core.errors import ModelFileError
from stretto.core.sampling import Noise, Sampling
from stretto.drafters.ngram import NGram
from stretto.kernels.sampling import RowSampling, logprobs, picks


def equal_but_one() -> torch.Tensor:
    """[1, 1000]: ones, and a two at 7."""
    values = torch.ones(1, 1000)
    values[0, 7] = 2
    return values


def test_ties_go_to_the_lowest_ids() -> None:
    """torch 2.13 `topk` of 100 equal values gives 67, 66, 65, 68; which it gives depends on the length."""
    _, ids, _ = logprobs(equal_but_one(), torch.tensor([0]), 3)
    assert ids[0].tolist() == [7, 0, 1]
    greedy, first = (Sampling(temperature=t, top_k=1, seed=3).resolve() for t in (0.0, 1.0))
    for logits in (torch.ones(1, 1000), torch.ones(1, 1000).double()):
        for sampling in (greedy, first):
            assert picks(logits, [RowSampling(sampling, Noise(3), 5)]) == [0]


def test_ties_at_the_edge_of_top_k_keep_the_lowest_ids() -> None:
    sampling = Sampling(temperature=1.0, top_k=3).resolve()
    for threads in (None, native.team()):
        rows = [RowSampling(sampling, Noise(seed), 5) for seed in range(300)]
        known = ([2.0] * len(rows), [7] * len(rows)) if threads else None
        found = picks(equal_but_one().expand(len(rows), -1).contiguous(), rows, known, threads)
        assert set(found) == {7, 0, 1}


def test_no_hint_means_no_filter() -> None:
    """transformers 5.23 filters with top_k 50 where neither the user nor the model says anything."""
    assert Sampling().resolve({}).top_k == 0
    rows = [RowSampling(Sampling(temperature=1.0).resolve(), Noise(seed), 5) for seed in range(4000)]
    assert max(picks(torch.zeros(len(rows), 1000), rows)) > 900  # uniform: the 50 first would end at 49


def test_lookup_takes_the_latest_match_and_all_that_followed() -> None:
    """The first match in transformers 5.23 and llama-cpp-python; two tokens in arctic-inference 0.3.0."""
    drafter = NGram(range(3, 0, -1))
    drafter.admit(1, [5, 1, 2, 9, 9, 9, 1, 2, 7, 7, 7, 1, 2])
    assert drafter.propose([Ask(1, 3)])[0].tokens == (7, 7, 7)


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_the_bytes_of_every_small_dtype_are_checked(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    save_file({"w": torch.zeros(3, 4).to(dtype)}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    kind, shape = file.kind("w")
    assert shape == (3, 4) and kind.startswith("F8_")
    with pytest.raises(ModelFileError, match=kind):
        file.held("w")
    raw = (tmp_path / "m.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header["w"]["shape"] = [3, 5]
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(ModelFileError, match="not the size"):
        SafetensorsFile(tmp_path / "m.safetensors")
