"""What XLA has to know of a GPU that is not there, from what its maker publishes.

XLA's own descriptions of GPUs (`xla/backends/gpu/target_config/specs` of its sources) are not part
of JAX's packages; `xformer plan --gpu_target` reads one of them instead of these figures.
"""

from collections.abc import Mapping

# NVIDIA's data sheet of the H100 SXM5 (memory, its bandwidth, SMs, cores, cache, clock), and the
# table "Technical Specifications per Compute Capability" of the CUDA programming guide for 9.0.
H100: Mapping[str, int | float] = {
    "device_memory_size": 84942979072,
    "memory_bandwidth": 3352 * 10**9,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "core_count": 132,
    "fpus_per_core": 128,
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "shared_memory_per_core": 228 * 2**10,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
}


def description(figures: Mapping[str, int | float], capability: tuple[int, int]) -> str:
    """Writes a description as XLA reads it (a `GpuTargetConfigProto` in text form).

    Args:
        figures: The figures of the GPU; XLA divides by most of them, so that none may be missing.
        capability: Its CUDA compute capability.

    Returns:
        The text.
    """
    major, minor = capability
    lines = [
        f"cuda_compute_capability {{ major: {major} minor: {minor} }}",
        *(f"{key}: {value}" for key, value in figures.items()),
    ]
    return f'gpu_device_info {{ {" ".join(lines)} }} platform_name: "CUDA"'
