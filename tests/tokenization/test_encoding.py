import copy
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.tokenization.encoding import BatchEncoding, CharSpan, TokenSpan
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
ROWS = [[2, 7, 8], [2, 9, 1]]


@pytest.fixture(scope="module")
def slow():
    return XGLMTokenizer.from_pretrained(FIXTURES / "xglm")


@pytest.fixture(scope="module")
def fast():
    return XGLMTokenizerFast.from_pretrained(FIXTURES / "xglm")


def test_values_are_items_attributes_and_arguments():
    encoding = BatchEncoding({"input_ids": ROWS, "length": 3})
    assert encoding["input_ids"] is encoding.input_ids is ROWS
    assert dict(**encoding) == {"input_ids": ROWS, "length": 3} == encoding
    encoding["labels"] = [1]
    assert encoding.labels == [1] and "labels" in encoding
    with pytest.raises(AttributeError, match="BatchEncoding has no value 'attention_mask'"):
        _ = encoding.attention_mask


def test_rows_of_a_slow_tokenizer_are_a_slice():
    encoding = BatchEncoding({"input_ids": ROWS})
    assert encoding[1:] == {"input_ids": ROWS[1:]}
    assert not encoding.is_fast and encoding.encodings is None and encoding.n_sequences is None
    with pytest.raises(KeyError, match="a name or a slice must index"):
        _ = encoding[0]


@pytest.mark.parametrize("method", ["tokens", "sequence_ids", "word_ids"])
def test_slow_tokenizers_have_no_way_back(slow, method):
    with pytest.raises(ValueError, match=rf"{method}\(\) needs the encodings of a fast tokenizer"):
        getattr(slow("a"), method)()


def test_way_back_of_a_pair(fast):
    encoding = fast("Hello world", "the class")
    assert encoding.is_fast and encoding.n_sequences == 2 and len(encoding.encodings) == 1
    tokens = encoding.tokens()
    assert tokens == fast.convert_ids_to_tokens(encoding.input_ids)
    start = tokens.index("\u2581the")
    assert encoding.sequence_ids()[start - 1 : start + 1] == [None, 1]
    assert encoding.token_to_sequence(start) == encoding.token_to_sequence(0, start) == 1
    assert encoding.token_to_sequence(-1) == 1
    word = encoding.word_ids()[start]
    assert encoding.words() == encoding.word_ids()
    assert encoding.token_to_word(0, start) == encoding.token_to_word(start - len(tokens)) == word
    assert encoding.word_to_tokens(word, sequence_index=1) == TokenSpan(start, start + 1)
    assert encoding.word_to_tokens(99, sequence_index=1) is None
    assert encoding.token_to_chars(0, start) == encoding.token_to_chars(start) == CharSpan(0, 3)
    assert encoding.token_to_chars(0) is None
    assert encoding.char_to_token(1, sequence_index=1) == start
    assert encoding.char_to_token(0, 99) is None
    assert encoding.word_to_chars(0, word, 1) == CharSpan(0, 3)
    assert encoding.char_to_word(0, 1, 1) == word


def test_rows_of_a_fast_batch_are_encodings(fast):
    encoding = fast(["a b", "c"])
    assert encoding[1].tokens == encoding.tokens(1)
    assert encoding.token_to_chars(1, 1) == CharSpan(0, 1)


@pytest.mark.parametrize(("kind", "array"), [("np", np.ndarray), ("jax", jax.Array)])
def test_arrays_are_those_asked_for(slow, kind, array):
    batch = slow(["a b c", "d"], padding=True, return_tensors=kind)
    assert all(isinstance(value, array) for value in batch.values())
    lists = slow(["a b c", "d"], padding=True)
    assert {name: value.tolist() for name, value in batch.items()} == lists
    one = slow("a b c", return_tensors=kind, return_length=True)
    assert one.input_ids.shape == (1, len(lists["input_ids"][0])) and one.length.shape == (1,)


def test_arrays_are_of_integers():
    empty = BatchEncoding({"input_ids": [[]]}, tensor_type="np")
    assert empty.input_ids.dtype == np.int64 and empty.input_ids.shape == (1, 0)
    assert BatchEncoding({"input_ids": []}, tensor_type="jax").input_ids.dtype == jnp.int32
    assert BatchEncoding({"input_ids": ROWS}, tensor_type="jax").input_ids.dtype == jnp.int32
    kept = np.array(ROWS, np.int8)
    assert BatchEncoding({"input_ids": kept}, tensor_type="np").input_ids is kept


def test_rows_of_different_lengths_are_an_array_of_rows():
    rows = BatchEncoding({"input_ids": [[2, 7], [2]]}, tensor_type="np").input_ids
    assert rows.dtype == object and [row.tolist() for row in rows] == [[2, 7], [2]]
    with pytest.raises(
        ValueError, match="rows of 'input_ids' must have one length .* padding=True"
    ):
        BatchEncoding({"input_ids": [[2, 7], [2]]}, tensor_type="jax")


@pytest.mark.parametrize("kind", ["pt", "tf", "numpy"])
def test_other_arrays_are_refused(slow, kind):
    with pytest.raises(ValueError, match=f'return_tensors must be "np" or "jax" .* got {kind!r}'):
        slow("a", return_tensors=kind)


def test_copies_keep_everything(fast):
    encoding = fast("a b")
    for copied in (copy.deepcopy(encoding), copy.copy(encoding)):
        assert copied == encoding and copied.tokens() == encoding.tokens()
    assert pickle.loads(pickle.dumps(BatchEncoding({"input_ids": ROWS}))).input_ids == ROWS


def test_arrays_of_jax_are_put_onto_devices(slow):
    batch = slow(["a b", "c d"], padding=True, return_tensors="jax")
    devices = jax.devices("cpu")
    for device, wanted in (("cpu:3", devices[3]), (devices[1], devices[1]), ("cpu", devices[0])):
        assert batch.to(device) is batch
        assert [value.devices() for value in batch.values()] == [{wanted}] * len(batch)
    mesh = jax.sharding.Mesh(np.array(devices[:2]), "data")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert batch.to(sharding, non_blocking=True).input_ids.sharding == sharding
    for name in ("cpu:99", "cpu:x", "nowhere"):
        with pytest.raises(ValueError, match=f"device must be one of JAX's .cpu., got '{name}'"):
            batch.to(name)


def test_lists_and_numpy_arrays_stay_where_they_are(slow):
    lists = slow("a b")
    arrays = slow("a b", return_tensors="np")
    ids = arrays.input_ids
    assert lists.to("cpu") == slow("a b") and arrays.to("cuda").input_ids is ids
