import numpy as np
import pytest

from xformer.data.packing import (
    Packer,
    Row,
    decode_record,
    encode_record,
    expand_row,
    pack,
    token_dtype,
)


def _documents(*sizes):
    return [np.full(size, 10 * (i + 1), np.int32) + np.arange(size) for i, size in enumerate(sizes)]


def test_documents_are_joined_and_cut():
    rows = [expand_row(row, 4, pad_id=1) for row in pack(_documents(3, 3, 1, 0, 6), 4)]
    packed = {name: [row[name].tolist() for row in rows] for name in rows[0]}
    assert packed == {
        "input_ids": [[10, 11, 12, 20], [21, 22, 30, 50], [51, 52, 53, 54], [55, 1, 1, 1]],
        "segment_ids": [[1, 1, 1, 2], [1, 1, 2, 3], [1, 1, 1, 1], [1, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 0], [0, 1, 0, 0], [0, 1, 2, 3], [0, 0, 0, 0]],
    }
    assert all(array.dtype == np.int32 for row in rows for array in row.values())


def test_no_token_is_lost_or_invented():
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 500, size) for size in generator.integers(0, 40, 200)]
    rows = list(pack(documents, 16))
    np.testing.assert_array_equal(
        np.concatenate([row.ids for row in rows]), np.concatenate(documents)
    )
    assert [row.ids.size for row in rows[:-1]] == [16] * (len(rows) - 1)


def test_nothing_packs_to_nothing():
    assert list(pack([], 4)) == []
    assert Packer(4).take() is None


def test_targets_are_all_but_the_first_of_each_segment():
    [row] = pack(_documents(3, 1, 2), 6)
    assert row.target_ids().tolist() == [11, 12, 31]


def test_padding_row_has_no_segments():
    row = expand_row(None, 3, pad_id=7)
    assert {name: array.tolist() for name, array in row.items()} == {
        "input_ids": [7, 7, 7],
        "segment_ids": [0, 0, 0],
        "position_ids": [0, 0, 0],
    }


@pytest.mark.parametrize(("vocab_size", "size"), [(65_536, 2), (65_537, 4)])
def test_records_round_trip(vocab_size, size):
    dtype = token_dtype(vocab_size)
    row = Row(np.array([5, vocab_size - 1, 0]), np.array([1, 2]))
    record = encode_record(row, dtype)
    assert len(record) == 4 * 3 + 3 * size
    again = decode_record(record, dtype)
    assert again.ids.tolist() == [5, vocab_size - 1, 0] and again.lengths.tolist() == [1, 2]


def test_record_layout_is_fixed():
    record = encode_record(Row(np.array([258, 3]), np.array([2])), token_dtype(1000))
    assert record == bytes([1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 3, 0])


@pytest.mark.parametrize(
    "record",
    [b"", b"\x02\0\0\0\x01\0\0\0", b"\x01\0\0\0\x02\0\0\0\x05\0", b"\x01\0\0\0\x01\0\0\0\5"],
)
def test_malformed_records_are_refused(record):
    with pytest.raises(ValueError, match="bytes are not a packed row|segments of 2 tokens"):
        decode_record(record, token_dtype(1000))
