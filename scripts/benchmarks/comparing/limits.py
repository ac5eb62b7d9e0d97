"""How fast the machine is at what bounds every program: matrix products, and reading memory."""

import contextlib
import platform
from pathlib import Path
from typing import Any

from comparing.case import Program, Setting

PRODUCT, VECTOR = "product", "vector"


def name_of(device: Any) -> str:
    """What a device is sold as."""
    if device.platform != "cpu":
        return device.device_kind
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def build(side: str, setting: Setting) -> Program:
    """The program of a limit.

    Args:
        side: `PRODUCT` or `VECTOR`.
        setting: What it is for; products are of its numbers.

    Returns:
        The program; its figures are the operations and bytes of a run, and the platform.
    """
    import jax
    import jax.numpy as jnp

    if side == PRODUCT:
        width = setting.size(4096, 1024) if jax.default_backend() == "cpu" else 8192
        size = 3 * jnp.dtype(setting.dtype).itemsize * width**2
        shape, flops = (width, width), 2 * width**3
    else:
        width = setting.size(16384, 8192)
        shape, flops, size = (width,), 2 * width**2, 4 * width**2
    dtype = setting.dtype if side == PRODUCT else "float32"
    table = jax.random.normal(jax.random.key(0), (width, width), dtype)
    other = jax.random.normal(jax.random.key(1), shape, dtype)
    product = jax.jit(jnp.matmul)
    device = jax.devices()[0]
    figures = {
        "flops": flops,
        "bytes": size,
        "platform": device.platform,
        "device": name_of(device),
    }
    return Program(lambda: product(table, other).block_until_ready(), dict, figures)
