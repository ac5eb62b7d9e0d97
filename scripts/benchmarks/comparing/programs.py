"""Programs of JAX and of PyTorch, and the weights that both are given."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from comparing.case import Outputs, Program, Setting


def jax_program(
    function: Callable,
    *arguments: Any,
    outputs: Callable[[Any], Outputs],
    units: int = 1,
    **figures: float,
) -> Program:
    """A jit-compiled function of fixed arguments.

    Args:
        function: A pure function.
        *arguments: Its arguments.
        outputs: What is compared, of its result.
        units: As `Program` has it.
        **figures: Figures that are better known than counted: "flops" and "bytes".

    Returns:
        The program.
    """
    import jax

    arguments = jax.device_put(arguments)
    compiled, found = compile_for(jax.jit(function), *arguments, **figures)
    return Program(
        run=lambda: jax.block_until_ready(compiled(*arguments)),
        outputs=lambda: as_numpy(outputs(compiled(*arguments))),
        figures=found,
        units=units,
    )


def jax_training(
    step: Any, state: Any, *arguments: Any, outputs: Callable[[Any], Outputs]
) -> Program:
    """A step from state to state, whose memory it takes over.

    Args:
        step: A jit-compiled function of state and arguments to the next state and numbers.
        state: The first state.
        *arguments: The rest, the same in every step.
        outputs: What is compared, of the numbers of a step; those of the first and the second
            step are, so that the first update is compared too.

    Returns:
        The program.
    """
    import jax

    compiled, figures = compile_for(step, state, *arguments)
    held = [state]

    def run() -> Any:
        held[0], numbers = compiled(held[0], *arguments)
        return jax.block_until_ready(numbers)

    def both() -> Outputs:
        first, second = (as_numpy(outputs(run())) for _ in range(2))
        return {**first, **{f"{key} after a step": value for key, value in second.items()}}

    return Program(run, both, figures)


def compile_for(function: Any, *arguments: Any, **figures: float) -> tuple[Any, dict[str, float]]:
    """Compiles, and counts.

    Args:
        function: A function under `jax.jit`.
        *arguments: What for.
        **figures: Figures that are better known than counted.

    Returns:
        The compiled function, and the figures of a program.
    """
    from xformer.plan.flops import matrix_flops

    began = time.perf_counter()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    found = {"compile": time.perf_counter() - began}
    memory = compiled.memory_analysis()
    if memory is not None:
        found["temporary"] = memory.temp_size_in_bytes
        moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
        found["bytes"] = figures.get("bytes", moved)
    found["flops"] = figures["flops"] if "flops" in figures else matrix_flops(traced.jaxpr)
    return compiled, found


def torch_program(
    call: Callable[[], Any], outputs: Callable[[Any], Outputs], *, gradient: bool = False
) -> Program:
    """A call of PyTorch.

    Args:
        call: What to run.
        outputs: What is compared, of its result.
        gradient: Whether it computes gradients.

    Returns:
        The program.
    """
    import torch

    def run() -> Any:
        with torch.set_grad_enabled(gradient):
            result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return Program(run, lambda: as_numpy(outputs(run())))


def torch_gradient(model: Any, loss_of: Callable[[], Any]) -> Program:
    """The loss of a PyTorch model, and its gradients' norm.

    Args:
        model: The model.
        loss_of: What computes its loss.

    Returns:
        The program.
    """

    def call() -> Any:
        model.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        return loss

    def outputs(loss: Any) -> Outputs:
        return {"loss": loss, "gradient": global_norm([one.grad for one in model.parameters()])}

    return torch_program(call, outputs, gradient=True)


def as_numpy(outputs: Outputs) -> Outputs:
    """The arrays of either library in NumPy."""
    return {
        key: np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        for key, value in outputs.items()
    }


def torch_device(setting: Setting) -> Any:
    """PyTorch's device, after the threads are set.

    Args:
        setting: What the program is for.

    Returns:
        The device.

    Raises:
        RuntimeError: if PyTorch does not see the GPU that JAX does.
    """
    import torch

    torch.set_num_threads(setting.threads)
    if setting.platform == "gpu" and not torch.cuda.is_available():
        raise RuntimeError("JAX has a GPU and PyTorch does not; install its build for CUDA")
    return torch.device("cuda" if setting.platform == "gpu" else "cpu")


def torch_model(name: str, setting: Setting) -> Any:
    """A model of `transformers` with the case's weights, in evaluation mode.

    Args:
        name: Its class.
        setting: What the program is for.

    Returns:
        The model.
    """
    import transformers

    device = torch_device(setting)
    model, info = getattr(transformers, name).from_pretrained(
        setting.folder / "weights", output_loading_info=True
    )
    # BigBird's has a pooler below heads that do not read it.
    assert all("pooler" in key for key in info["missing_keys"]), info["missing_keys"]
    return model.eval().to(device)


def flax_model(name: str, setting: Setting) -> tuple[Any, Any]:
    """A Flax model of `transformers`, and the case's weights for it.

    Args:
        name: Its class, which xformer has too.
        setting: What the program is for.

    Returns:
        The model, and its parameters.
    """
    import warnings

    import transformers

    import xformer

    warnings.simplefilter("ignore")  # their classes say that they are deprecated
    weights = setting.folder / "weights"
    params = getattr(xformer, name).from_pretrained(weights).params
    cls = getattr(transformers, name)
    model = cls(cls.config_class.from_pretrained(weights), _do_init=False)
    return model, params


def our_model(name: str, config: Any, head: Any, setting: Setting) -> tuple[Any, Any]:
    """A module of xformer with new weights, which are saved for the others.

    Args:
        name: The drop-in class.
        config: The architecture.
        head: The head.
        setting: What the program is for.

    Returns:
        The module, and its parameters.
    """
    import xformer

    weights = setting.folder / "weights"
    getattr(xformer, name)(config).save_pretrained(weights)
    return xformer.build(config, head), xformer.read_params(weights, config, head)


def without_dropout(config: Any) -> Any:
    """The architecture whose training is nothing but arithmetic, so that it can be compared."""
    rates = [
        field.name
        for field in dataclasses.fields(config)
        if "dropout" in field.name or field.name == "layerdrop"
    ]
    return dataclasses.replace(config, **dict.fromkeys(rates, 0.0))


def global_norm(gradients: Any) -> Any:
    """The norm of all gradients together, of a tree or of PyTorch's tensors."""
    if isinstance(gradients, list):
        import torch

        return torch.stack([one.pow(2).sum() for one in gradients if one is not None]).sum().sqrt()
    import optax

    return optax.tree.norm(gradients)


def token_ids(rows: int, length: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Ids without special tokens, the same in every process."""
    ids = np.random.default_rng(seed).integers(4, vocabulary, (rows, length))
    return ids.astype(np.int32)


def packed_rows(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of one document each, as training reads them."""
    places = np.arange(ids.shape[1], dtype=np.int32)
    return {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "position_ids": np.broadcast_to(places, ids.shape),
    }
