import logging
from pathlib import Path

import pytest

from xformer.tokenization.settings import (
    VERY_LARGE_INTEGER,
    PaddingStrategy,
    TruncationStrategy,
    resolve,
)
from xformer.tokenization.xglm import XGLMTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
LONG = {"model_max_length": VERY_LARGE_INTEGER}


def resolved(told=None, **options):
    tokenizer = {
        "model_max_length": options.pop("model_max_length", 20),
        "padding_side": "left",
        "split_special_tokens": True,
        "has_pad_token": options.pop("has_pad_token", True),
    }
    return resolve(options, **tokenizer, warn=[].append if told is None else told.append)


def strategies(**options):
    settings = resolved(**options)
    return settings.padding.value, settings.truncation.value, settings.max_length


def test_what_is_left_out_is_the_tokenizers():
    settings = resolved()
    assert settings.padding_side == "left" and settings.split_special_tokens
    assert strategies() == ("do_not_pad", "do_not_truncate", None)
    settings = resolved(padding_side="right", split_special_tokens=False)
    assert settings.padding_side == "right" and not settings.split_special_tokens


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"padding": True}, ("longest", "do_not_truncate", None)),
        ({"padding": PaddingStrategy.LONGEST}, ("longest", "do_not_truncate", None)),
        ({"padding": "max_length"}, ("max_length", "do_not_truncate", 20)),
        ({"padding": "max_length", "max_length": 5}, ("max_length", "do_not_truncate", 5)),
        ({"truncation": True}, ("do_not_pad", "longest_first", 20)),
        ({"truncation": TruncationStrategy.ONLY_FIRST}, ("do_not_pad", "only_first", 20)),
        ({"truncation": "only_second", "max_length": 5}, ("do_not_pad", "only_second", 5)),
        ({"truncation": False, "max_length": 5}, ("do_not_pad", "do_not_truncate", 5)),
        ({"max_length": 5}, ("do_not_pad", "longest_first", 5)),
        ({"max_length": 5, "padding": True}, ("longest", "do_not_truncate", 5)),
        ({"truncation": True, "padding": True, **LONG}, ("longest", "do_not_truncate", None)),
        ({"padding": "max_length", **LONG}, ("do_not_pad", "do_not_truncate", None)),
    ],
)
def test_strategies_and_the_length_they_go_to(options, wanted):
    assert strategies(**options) == wanted


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ({"max_length": 5}, "max_length without truncation cuts longest_first"),
        ({"max_length": 5, "padding": True}, "max_length is not used by padding=True"),
        ({"truncation": True, **LONG}, "neither max_length nor .* model_max_length is set"),
        ({"padding": "max_length", **LONG}, "neither max_length nor .* model_max_length is set"),
    ],
)
def test_doubts_are_told_unless_unwanted(options, doubt):
    told = []
    resolved(told, **options)
    assert len(told) == 1 and pytest.raises(ValueError, match=doubt).matches(ValueError(told[0]))
    resolved(told, verbose=False, **options)
    assert len(told) == 1


def test_a_tokenizer_tells_each_doubt_once(caplog):
    tokenizer = XGLMTokenizer.from_pretrained(FIXTURES / "xglm", model_max_length=4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tokenizer("the statement executes the first suite")
    assert [record.message for record in caplog.records] == [
        "a text is longer than model_max_length, and the model cannot take it whole; pass "
        "truncation=True"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "both"}, "padding must be True, False or one of 'longest', 'max_length',"),
        ({"truncation": "first"}, "truncation must be .* 'only_first', .* got 'first'"),
        ({"padding_side": "top"}, 'padding_side must be "right" or "left", got \'top\''),
        ({"max_length": -1}, "max_length must be at least 0, got -1"),
        ({"stride": -1}, "stride must be at least 0, got -1"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be at least 1, got 0"),
        ({"padding": True, "has_pad_token": False}, "must have a padding token to pad; set one"),
        (
            {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 4},
            "max_length=9 must be a multiple of pad_to_multiple_of=4",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resolved(**options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="there is no option pad_to_max_length"):
        resolved(pad_to_max_length=True)
