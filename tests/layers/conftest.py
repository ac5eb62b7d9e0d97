"""Quick compilation for the tests of the layers."""

import pytest

from xformer.layers.kernels import block_gpu_kernels, block_sparse, block_tpu_fetch


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
    monkeypatch.setattr(block_sparse, "_KERNELS", {})  # nothing but what is interpreted is traced
    block_sparse._traced_once.clear_cache()  # traced with other numbers
    yield
    block_sparse._traced_once.clear_cache()
