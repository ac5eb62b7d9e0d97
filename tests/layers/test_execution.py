"""How a model is computed: only documented values."""

import jax.numpy as jnp
import pytest

from xformer.layers.execution import Execution


@pytest.mark.parametrize(
    "field, value, legal",
    [
        ("dtype", "float64", "'float32', 'bfloat16', 'float16'"),
        ("layers", "unrolled", "'loop', 'scan'"),
        ("remat", "dots", "'none', 'minimal', 'full'"),
    ],
)
def test_execution_refuses_other_values(field, value, legal):
    message = rf"Execution\.{field} must be one of \({legal}\), got '{value}'"
    with pytest.raises(ValueError, match=message):
        Execution(**{field: value})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compute_dtype_is_that_of_the_name(dtype):
    assert Execution(dtype=dtype).compute_dtype == jnp.dtype(dtype)
