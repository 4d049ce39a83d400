"""Text as it grows: what a request shows piece by piece, and stop strings found across the pieces."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from vocabularies import byte_level, byte_metadata, library, llama_like, save

from stretto.text.stream import StopMatcher, Text
from stretto.text.tokenizer import Tokenizer


def shown(tokenizer: Tokenizer, ids: list[int], *stops: str) -> tuple[list[str], str, bool]:
    """The piece of every token until a stop string, the last piece, and whether there was a stop string."""
    text, pieces = Text(tokenizer, stops, continues=False), list[str]()
    for i in ids:
        piece, stopped = text.push(i)
        pieces.append(piece)
        if stopped:
            return pieces, text.finish(), True
    return pieces, text.finish(), False


# --- A character that the limit of tokens cuts


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """Byte-level, one token per byte, nothing else but `<s>`."""
    return Tokenizer.from_gguf(byte_metadata(("<s>", 3)))


def spelled(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The ids of single bytes."""
    found = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [found[bytes([b])] for b in data]


@pytest.mark.parametrize(
    ("data", "last"),
    [
        (b"a\xe2\x82", "\ufffd"),  # two of the three bytes of the euro sign
        (b"a\xe2\x82\xac", ""),
        (b"a\xf0\x9f\x91", "\ufffd"),
        (b"\xe2", "\ufffd"),
        (b"", ""),
    ],
)
@pytest.mark.parametrize("stops", [(), ("zz",), ("a\ufffdb",)])
def test_a_character_that_is_cut_is_one_replacement_in_the_last_piece(
    bytewise: Tokenizer, data: bytes, last: str, stops: tuple[str, ...]
) -> None:
    ids = spelled(bytewise, data)
    pieces, rest, stopped = shown(bytewise, ids, *stops)
    assert not stopped and "".join(pieces) + rest == bytewise.decode(ids) == data.decode(errors="replace")
    assert rest.endswith(last) and "\ufffd" not in "".join(pieces)


@given(
    data=st.binary(max_size=12) | st.text("aé€👩", max_size=6).map(lambda text: text.encode()[:-1]),
    stops=st.lists(st.text("aé€\ufffd", min_size=1, max_size=3), max_size=2),
)
@settings(max_examples=300)
def test_the_pieces_of_any_bytes_are_their_text_up_to_the_first_stop(
    bytewise: Tokenizer, data: bytes, stops: list[str]
) -> None:
    ids = spelled(bytewise, data)
    pieces, rest, stopped = shown(bytewise, ids, *stops)
    whole = bytewise.decode(ids)
    assert whole == data.decode(errors="replace")
    expected, stop = first_stop(whole, stops)
    assert "".join(pieces) + rest == expected
    # A stop string that the end of the bytes completes is found when there is nothing left to stop.
    assert stop is not None or not stopped


def test_a_stop_string_may_end_in_a_cut_character(bytewise: Tokenizer) -> None:
    pieces, rest, stopped = shown(bytewise, spelled(bytewise, b"ab\xe2\x82"), "b\ufffd")
    assert ("".join(pieces) + rest, stopped) == ("a", False)
    pieces, rest, stopped = shown(bytewise, spelled(bytewise, b"ab\xe2\x82c"), "b\ufffd")
    assert ("".join(pieces) + rest, stopped) == ("a", True)


# --- Stop strings see the text


def test_stop_strings_see_the_spaces_of_added_sentencepiece_tokens(tmp_path: Path) -> None:
    inner = llama_like(AddedToken("▁▁▁▁", normalized=False), AddedToken("▁fn", normalized=False))
    folder = save(tmp_path, inner, {"bos_token": "<s>", "eos_token": "</s>"})
    found = Tokenizer.from_dir(folder)
    ids = [inner.token_to_id(piece) for piece in ("a", "▁▁▁▁", "b", "▁fn", "c")]
    assert library(folder).decode(ids) == "a    b fnc"
    for stop, expected in ((" fn", "a    b"), ("   b", "a "), ("▁", "a    b fnc"), ("nc", "a    b f")):
        pieces, rest, stopped = shown(found, ids, stop)
        assert ("".join(pieces) + rest, stopped) == (expected, stop != "▁")


def test_special_tokens_are_no_part_of_what_stop_strings_see(tmp_path: Path) -> None:
    inner = byte_level()
    inner.add_tokens([AddedToken("<x>", special=False, normalized=False)])
    found = Tokenizer.from_dir(save(tmp_path, inner, {"pad_token": "<x>"}))  # named, so special
    a, x = inner.token_to_id("a"), inner.token_to_id("<x>")
    assert shown(found, [a, x, a, x], "aa") == (["", "", ""], "", True)
    assert shown(found, [a, x, a], "<x>") == (["a", "", "a"], "", False)


# --- Stop strings


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop string that is complete first; of those that end there the longest."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", max_size=4), max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
@settings(max_examples=500)
def test_stop_strings_are_found_wherever_the_text_is_split(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, hit, at = StopMatcher(stops), "", None, 0
    expected, stop = first_stop(text, stops)
    for cut in [*sorted(cuts), len(text)]:
        emit, hit = matcher.push(text[at:cut])
        at, shown = max(at, cut), shown + emit
        assert expected.startswith(shown)
        if hit is not None:
            break
    assert (shown + matcher.finish(), hit) == (expected, stop)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert StopMatcher(["abb", "b"]).push("abb") == ("a", "b")
    assert StopMatcher(["b", "ab"]).push("xab") == ("x", "ab")
    assert StopMatcher([]).push("ab") == StopMatcher([""]).push("ab") == ("ab", None)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.push("abc <") == ("abc ", None)
    assert matcher.push("/en") == ("", None)
    assert matcher.push("dx") == ("</endx", None)
    assert matcher.push("y</end>z") == ("y", "</end>")
