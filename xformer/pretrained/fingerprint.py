"""A hash of what decides what a model makes of a text."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from xformer.tokenization.base import PreTrainedTokenizerBase


def model_fingerprint(config: Any, params: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a model with its tokenizer.

    Args:
        config: The architecture.
        params: The parameters, wherever they are.
        tokenizer: The tokenizer.

    Returns:
        64 hexadecimal digits.
    """
    weights = [int(word) for word in _sums(params)]
    described = [config.to_json_string(), tokenizer.fingerprint(), weights]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@jax.jit
def _sums(params: Any) -> list[jax.Array]:
    """Sums over the words of every leaf and over their squares."""
    words = []
    for leaf in jax.tree.leaves(params):
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
        words += [bits.sum(), (bits * bits).sum()]  # modulo 2**32, in any order
    return words
