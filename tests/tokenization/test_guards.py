import copy
import pickle
import threading
from pathlib import Path

import pytest

from xformer.tokenization.guards import rust_errors
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"


def test_rust_panics_are_value_errors():
    class PanicException(BaseException):
        pass

    with pytest.raises(ValueError, match="tokenizer must be whole: index out of bounds"):
        with rust_errors("the tokenizer must be whole"):
            raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt):
        with rust_errors("the tokenizer must be whole"):
            raise KeyboardInterrupt


def test_a_busy_tokenizer_is_not_called_a_bad_argument():
    with pytest.raises(RuntimeError, match="^Already borrowed$"):
        with rust_errors("the texts must suit"):
            raise RuntimeError("Already borrowed")
    with pytest.raises(ValueError, match="the texts must suit: else"):
        with rust_errors("the texts must suit"):
            raise RuntimeError("else")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: one, "pickled"])
def test_threads_with_settings_of_their_own_share_a_tokenizer(copied):
    tokenizer = XGLMTokenizerFast.from_pretrained(FIXTURES / "xglm")
    other = pickle.loads(pickle.dumps(tokenizer)) if copied == "pickled" else copied(tokenizer)
    texts = ["a b c", "d"] * 20
    ids = tokenizer(texts)["input_ids"]
    wrong = []

    def work(kind, padding):
        try:
            for _ in range(100):
                found = kind(texts, padding=padding)["input_ids"]
                if len({len(row) for row in found}) != (1 if padding else 2):
                    wrong.append(found)
                if kind.decode(ids[0]) != "</s> a b c":
                    wrong.append(ids[0])
        except Exception as error:
            wrong.append(error)

    kinds = (tokenizer, other, tokenizer, other)
    threads = [threading.Thread(target=work, args=(kind, i < 2)) for i, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
