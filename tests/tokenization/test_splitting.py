import pytest
from tokenizers import AddedToken

from xformer.tokenization.splitting import TokenSplitter


def split(text, *tokens):
    splitter = TokenSplitter(AddedToken(one) if isinstance(one, str) else one for one in tokens)
    return splitter.split(text)


def test_text_without_tokens_stays_whole():
    assert split("a b", "<x>") == [("a b", False)] == split("a b")
    assert split("", "<x>") == split("") == []
    assert TokenSplitter([AddedToken("a")]) and not TokenSplitter([])


def test_tokens_are_parts_of_their_own():
    parts = [("<x>", True), ("a ", False), ("<y>", True), ("<x>", True), (" b", False)]
    assert split("<x>a <y><x> b", "<x>", "<y>") == parts


def test_longest_of_those_that_begin_first_is_taken():
    assert split("abcd", "bcd", "ab", "a") == [("ab", True), ("cd", False)]
    assert split("extra_10", "extra_1", "extra_10") == [("extra_10", True)]
    assert split("aab", "ab") == [("a", False), ("ab", True)]


def test_what_begins_like_a_token_is_no_part_of_one():
    """A search that skips characters would find "abc" in "abXc"."""
    assert split("abXc", "abc", "b") == [("a", False), ("b", True), ("Xc", False)]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({}, ["a  ", "<x>", "  b"]),
        ({"lstrip": True}, ["a", "<x>", "  b"]),
        ({"rstrip": True}, ["a  ", "<x>", "b"]),
        ({"lstrip": True, "rstrip": True}, ["a", "<x>", "b"]),
        ({"single_word": True}, ["a  ", "<x>", "  b"]),
    ],
)
def test_flags_strip_white_space(flags, parts):
    found = split("a  <x>  b", AddedToken("<x>", **flags))
    assert [part for part, _ in found] == parts
    assert [is_token for _, is_token in found] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("word", [("word", True)]),
        ("a word b", [("a ", False), ("word", True), (" b", False)]),
        ("sword b", [("sword", False), (" b", False)]),
        ("a words", [("a ", False), ("words", False)]),
        ("a\nword", [("a\nword", False)]),
    ],
)
def test_single_words_have_spaces_around_them(text, found):
    assert split(text, AddedToken("word", single_word=True)) == found


def test_characters_that_mean_something_in_patterns_are_plain():
    assert split("a^]b\\", "^]", "\\", "-") == [
        ("a", False),
        ("^]", True),
        ("b", False),
        ("\\", True),
    ]
