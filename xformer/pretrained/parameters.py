"""The lower half of a drop-in model: a config, a module and its parameters."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import FrozenDict, freeze, meta, unfreeze
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from xformer import partitioning
from xformer.layers.execution import Execution
from xformer.layers.parameter import OUTPUTS_FIRST
from xformer.layers.stack import looped_shapes, restack
from xformer.models.build import Module, check_direction
from xformer.models.config import ModelConfig
from xformer.pretrained.reporting import listed

Params = Mapping[str, Any]
ParamPath = tuple[str, ...]


class ModelWithParams:
    """A config, the module of it, and the module's parameters, kept or handed out.

    Attributes:
        config_class: The family's config.
        main_input_name: The argument that a call cannot do without.
        input_axes: What the axes of that argument are.
        module_class: The Linen module, made of (config, execution) and the settings.
        module_settings: What can be set about the module beside its config, and the defaults.
        key: Random key that `seed` gave.
        dtype: Dtype of the computation.
        input_shape: Shape of the ids that the weights are initialised with.
    """

    config_class: ClassVar[type[ModelConfig]]
    main_input_name: ClassVar[str] = "input_ids"
    input_axes: ClassVar[tuple[str, ...]] = ("batch", "length")
    module_class: ClassVar[type[Module] | None] = None
    module_settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        config: ModelConfig,
        input_shape: tuple[int, ...] | None = (1, 1),
        seed: int = 0,
        dtype: DTypeLike = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **settings: Any,
    ) -> None:
        """Builds the module and, unless told otherwise, draws its weights.

        Args:
            config: The architecture.
            input_shape: Shape of the ids that the weights are initialised with; no weight depends
                on it. None is (1, 1).
            seed: Of the random weights.
            dtype: Dtype of the computation; the parameters are float32.
            _do_init: Whether the model keeps parameters. If not, `init_weights` gives them, and
                every call needs `params=`.
            gradient_checkpointing: Whether the backward pass recomputes activations.
            **settings: Those of `module_settings` that shall not have their defaults.

        Raises:
            TypeError: if the config is another family's, or there is no such setting.
            ValueError: if the config or the dtype is not valid, or the class has no module.
        """
        if self.module_class is None:
            raise ValueError(f"{type(self).__name__} is a base class; use one with a module_class")
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        if settings.keys() - self.module_settings.keys():
            raise TypeError(
                f"{type(self).__name__} takes the settings {sorted(self.module_settings)} beside "
                f"its config, got {sorted(settings)}"
            )
        self._settings = {**self.module_settings, **settings}
        self._config = config
        self._execution = Execution(
            dtype=jnp.dtype(dtype).name, remat="full" if gradient_checkpointing else "none"
        )
        self._module: Module | None = None
        self.key = jax.random.PRNGKey(seed)
        self.dtype = jnp.dtype(dtype)
        self.input_shape = (1, 1) if input_shape is None else input_shape
        self._describe_params()
        self._is_initialized = _do_init
        self._params: dict[str, Any] | None = None
        if _do_init:
            self.params = self.init_weights(self.key, self.input_shape)

    def dummy_inputs(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments of the module that `init` is traced with; axes that are missing have size 1."""
        batch, *rest = input_shape
        ones = (1,) * (len(self.input_axes) - len(input_shape))
        return {"input_ids": jnp.zeros((batch, *ones, *rest), jnp.int32)}

    @property
    def framework(self) -> str:
        """Always "flax"."""
        return "flax"

    @property
    def config(self) -> ModelConfig:
        """The architecture. Fields may be assigned; the next call follows them."""
        return self._config

    @property
    def module(self) -> Module:
        """The pure module: `module.apply({"params": params}, ...)`."""
        assert self.module_class is not None  # the constructor has checked
        module = self._module
        if module is None or (module.config, module.execution) != (self._config, self._execution):
            # A copy: what is compiled for this config must not see later assignments.
            config = dataclasses.replace(self._config)
            check_direction(self.module_class, config)
            module = self._module = self.module_class(config, self._execution, **self._settings)
        return module

    @property
    def params_shape_tree(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters."""
        return self._shapes

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """Path of every parameter."""
        return set(self._required)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, as nested dicts.

        Raises:
            ValueError: if the model keeps none, or on assignment, if some are missing.
        """
        if self._params is None:
            raise ValueError(
                "a model made with _do_init=False keeps no params: call init_weights (or use what "
                "from_pretrained returned beside the model) and pass params= to every call"
            )
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        if not self._is_initialized:
            raise ValueError(
                "a model made with _do_init=False keeps no params: hold them outside of the model"
            )
        self._params = self._complete(params)

    def enable_gradient_checkpointing(self) -> None:
        """Makes the backward pass recompute activations instead of keeping them."""
        self._execution = Execution(dtype=self._execution.dtype, remat="full")

    def init_weights(
        self, rng: PRNGKeyArray, input_shape: tuple[int, ...] | None, params: Params | None = None
    ) -> dict[str, Any]:
        """Draws weights, or those that are missing.

        Args:
            rng: Random key.
            input_shape: Shape of the ids that the weights are initialised with; that of the model
                if None.
            params: Weights to keep; only what they lack is drawn.

        Returns:
            Nested dicts of float32 arrays (and of `params` as they are).

        Raises:
            ValueError: if `input_shape` is no (batch, length).
        """
        input_shape = self.input_shape if input_shape is None else input_shape
        if len(input_shape) < 2:
            raise ValueError(f"input_shape must be (batch, length), got {input_shape}")
        given = {} if params is None else traverse_util.flatten_dict(as_dicts(params))
        missing = frozenset(self._required - given.keys())
        drawn = {}
        if missing:
            drawn = _draw(self._scanned(), missing, rng, self.dummy_inputs(tuple(input_shape)))
        return traverse_util.unflatten_dict({**given, **drawn})

    def to_bf16(self, params: Params, mask: Any = None) -> Any:
        """Casts floating-point parameters to bfloat16.

        Args:
            params: Parameters.
            mask: The same tree with True where a parameter is cast; all of them if None.

        Returns:
            The parameters.
        """
        return _cast(params, jnp.bfloat16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Any:
        """Casts floating-point parameters to float32; arguments as for `to_bf16`."""
        return _cast(params, jnp.float32, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Any:
        """Casts floating-point parameters to float16; arguments as for `to_bf16`."""
        return _cast(params, jnp.float16, mask)

    def _describe_params(self) -> None:
        """Finds out what parameters the config asks for."""
        scanned = self._scanned()  # one layer is traced, however many there are
        inputs = self.dummy_inputs(self.input_shape)
        boxed = jax.eval_shape(lambda rng: scanned.init(rng, **inputs)["params"], self.key)
        looped = looped_shapes(boxed)
        self._axes, self._shapes = partitioning.axis_names(looped), meta.unbox(looped)
        self._required = frozenset(traverse_util.flatten_dict(self._shapes))

    def _complete(self, params: Params) -> dict[str, Any]:
        """Parameters as plain dicts, if none is missing or kept for decoding alone."""
        params = as_dicts(params)
        given = traverse_util.flatten_dict(params).keys()
        if any(path[-1] == OUTPUTS_FIRST for path in given):
            raise ValueError(
                "params are kept for decoding, and neither saved nor converted again: give those "
                "that they were made of"
            )
        missing = self._required - given
        if missing:
            raise ValueError(f"params lack these parameters: {listed(missing)}")
        return params

    def _scanned(self) -> Module:
        """The module with its layers in one stack: the same weights, from one traced layer."""
        return self.module.clone(execution=dataclasses.replace(self._execution, layers="scan"))


def as_dicts(params: Params) -> dict[str, Any]:
    """A tree of parameters as a dict that may be changed."""
    return unfreeze(params) if isinstance(params, FrozenDict) else dict(params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    module: Module, paths: frozenset[ParamPath], rng: PRNGKeyArray, dummy_inputs: dict[str, Any]
) -> dict[ParamPath, jax.Array]:
    """The random weights at some paths; the compiler leaves out what the others need."""
    params = meta.unbox(module.init(rng, **dummy_inputs)["params"])
    flat = traverse_util.flatten_dict(restack(params, "loop"))
    return {path: flat[path] for path in paths}


def _cast(params: Params, dtype: DTypeLike, mask: Any) -> Any:
    """Floating-point leaves in another dtype, where the mask says so."""

    def one(leaf: Any, chosen: bool = True) -> Any:
        leaf = jnp.asarray(leaf)
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if chosen and floating else leaf

    plain = unfreeze(params) if isinstance(params, FrozenDict) else params
    mask = unfreeze(mask) if isinstance(mask, FrozenDict) else mask
    cast = jax.tree.map(one, plain) if mask is None else jax.tree.map(one, plain, mask)
    return freeze(cast) if isinstance(params, FrozenDict) else cast
