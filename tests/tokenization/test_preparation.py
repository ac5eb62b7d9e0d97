import jax.numpy as jnp
import numpy as np
import pytest

from xformer.tokenization import preparation
from xformer.tokenization.preparation import as_lists


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3]],
        [np.array([1, 2]), (3,)],
        (jnp.array([1, 2]), [np.int64(3)]),
        ([1, np.int32(2)], range(3, 4)),
    ],
)
def test_lists_and_arrays_become_lists_of_numbers(value):
    lists = as_lists(value)
    assert lists == [[1, 2], [3]]
    assert all(type(row) is list and {*map(type, row)} == {int} for row in lists)
    assert as_lists([]) == [] and as_lists(7) == 7 and as_lists("ab") == "ab"


def test_rows_of_ids_are_copied_whole(monkeypatch):
    visited = []
    whole = preparation.as_lists
    monkeypatch.setattr(preparation, "as_lists", lambda one: visited.append(one) or whole(one))
    row = [*range(1000)]
    [copied] = preparation.as_lists([row])
    assert copied == row and copied is not row and len(visited) == 2
