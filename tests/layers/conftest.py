"""Quick compilation for the tests of the layers."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(quick_compilation):
    yield
