from pathlib import Path

import pytest

from xformer.hub import HubOptions
from xformer.tokenization import auto, tokenizer_files
from xformer.tokenization.auto import AutoTokenizer
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

FOLDER = Path(__file__).parent / "fixtures" / "xglm"
KINDS = pytest.mark.parametrize("kind", [AutoTokenizer, XGLMTokenizer, XGLMTokenizerFast])


@KINDS
@pytest.mark.parametrize(
    "options",
    [
        {"proxies": None, "resume_download": None, "use_auth_token": None, "from_slow": False},
        {"proxies": {}, "resume_download": True, "from_slow": None, "verbose": True},
        {"resume_download": False, "verbose": False, "use_auth_token": False},
    ],
)
def test_arguments_that_ask_for_nothing_are_taken(kind, options):
    tokenizer = kind.from_pretrained(FOLDER, padding_side="left", **options)
    assert tokenizer.padding_side == "left" and not options.keys() & tokenizer.init_kwargs.keys()


@KINDS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxies": {"https": "a:1"}}, "proxies must be left out; set the environment var"),
        ({"from_slow": True}, "from_slow must be one of .None, False. or be left out, got True"),
        (
            {"resume_download": "x"},
            "resume_download must be one of .None, False, True. or be left out, got 'x'",
        ),
        ({"verbose": 2}, "verbose must be one of .None, False, True. or be left out, got 2"),
        ({"use_auth_token": "a", "token": "b"}, "use_auth_token must be left out: it is the older"),
    ],
)
def test_arguments_that_ask_for_something_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind.from_pretrained(FOLDER, **options)


@KINDS
@pytest.mark.parametrize("options", [{"use_auth_token": "secret"}, {"token": "secret"}])
def test_older_name_of_the_token_reaches_the_hub(kind, options, monkeypatch):
    tokens = []

    def seen(**given):
        tokens.append(given["token"])
        return HubOptions(**given)

    for module in (auto, tokenizer_files):
        monkeypatch.setattr(module, "HubOptions", seen)
    kind.from_pretrained(FOLDER, **options)
    assert tokens == ["secret"]
