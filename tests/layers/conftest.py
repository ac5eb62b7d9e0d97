"""Quick compilation for the tests of the layers."""

import pytest

from xformer.layers.kernels import (
    block_gpu_kernels,
    block_sparse,
    block_tpu_fetch,
    dense,
    dense_gpu,
    dense_tpu,
)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(quick_compilation):
    yield


@pytest.fixture
def small_steps(monkeypatch):
    """Kernels whose steps are small enough for several of them in what is quickly interpreted."""
    monkeypatch.setattr(block_tpu_fetch, "TOKENS", 32)
    monkeypatch.setattr(block_tpu_fetch, "KEYS", 32)
    monkeypatch.setattr(block_tpu_fetch, "READERS", 2)
    monkeypatch.setattr(block_gpu_kernels, "PER_PROGRAM", 3)
    for module in (dense_tpu, dense_gpu):
        monkeypatch.setattr(module, "LEAST", 16)
        monkeypatch.setattr(module, "MOST", 32)
    for module in (block_sparse, dense):
        # Nothing but what is interpreted is traced, and nothing that was traced with other numbers.
        monkeypatch.setattr(module, "_KERNELS", {})
        module._traced_once.clear_cache()
    yield
    for module in (block_sparse, dense):
        module._traced_once.clear_cache()
