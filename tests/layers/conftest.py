"""Quick compilation for the tests of the layers."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    """Leaves out the compiler's expensive passes: these programs are small and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
