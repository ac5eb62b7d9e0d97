"""Whatever is changed in a file: it is refused by name, or every row is accounted for."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 60


def _write(path, write_records):
    texts = [f"row {i} " * (i % 20 + 1) for i in range(ROWS)]
    table = pa.table({"id": range(ROWS), "tags": [["a"]] * ROWS, "text": texts})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=20)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    else:
        write_records(path, [text.encode() for text in texts])
    return path


def _damaged(content, chance):
    changed = bytearray(content)
    kind = chance.choice(["bytes", "bytes", "bytes", "cut", "hole"])
    if kind == "cut":
        return changed[: chance.randrange(len(changed))]
    if kind == "hole":
        begin = chance.randrange(len(changed))
        del changed[begin : begin + chance.randrange(1, 300)]
        return changed
    for _ in range(chance.randint(1, 6)):
        # The ends hold what describes the rest.
        near = chance.randrange(min(1000, len(changed)))
        at = chance.choice([chance.randrange(len(changed)), near, len(changed) - 1 - near])
        changed[at] = chance.choice([0, 255, changed[at] ^ 1 << chance.randrange(8)])
    return changed


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrayrecord"])
def test_damage_is_refused_by_name_or_counted(tmp_path, read, write_records, suffix):
    path = _write(tmp_path / f"rows{suffix}", write_records)
    content = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(150):
        path.write_bytes(_damaged(content, chance))
        try:
            assert read(path).rows == ROWS
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50
