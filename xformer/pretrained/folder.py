"""Reading a model folder: config.json beside model.safetensors, whole or sharded."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import meta
from safetensors import SafetensorError, safe_open

from xformer.layers.execution import Execution
from xformer.layers.heads import Head
from xformer.models.build import ModelConfig, build
from xformer.models.xglm import XGLMConfig
from xformer.pretrained.names import weight

BASE_PREFIX = "model"  # where a headed model keeps the base model
_CONFIGS: dict[str, type[ModelConfig]] = {config.model_type: config for config in (XGLMConfig,)}


def read_config(folder: str | Path) -> ModelConfig:
    """Reads the architecture from `config.json`; fields that do not describe it are ignored.

    Args:
        folder: A folder in the published format.

    Returns:
        The config of the family that `model_type` names.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if `model_type` is unknown or a field is out of range.
    """
    path = Path(folder) / "config.json"
    fields = _read_object(path)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CONFIGS:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(_CONFIGS)}, got {model_type!r}"
        )
    cls = _CONFIGS[model_type]
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in fields.items() if key in known})


def read_params(folder: str | Path, config: ModelConfig, head: Head) -> dict[str, Any]:
    """Reads the parameters of a looped model, as float32.

    A checkpoint with a head gives the parameters of the model without one, and a name that the
    model does not have is ignored.

    Args:
        folder: A folder in the published format.
        config: The architecture, as `read_config` gives it.
        head: The head to fill.

    Returns:
        Nested dicts of NumPy arrays, the "params" collection of `build(config, head)`.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if weights are missing or have another shape.
    """
    module = build(config, head, Execution())
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), ids))["params"]
    tensors = _tensors(Path(folder))
    flat, missing = {}, []
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name, transposed = weight(path)
        candidates = (name, f"{BASE_PREFIX}.{name}", name.removeprefix(f"{BASE_PREFIX}."))
        found = next((candidate for candidate in candidates if candidate in tensors), None)
        if found is None:
            missing.append(name)
            continue
        with _open(tensors[found]) as file:
            value = np.asarray(file.get_tensor(found).astype(jnp.float32))
        value = value.T if transposed else value
        if value.shape != leaf.shape:
            raise ValueError(
                f"{found} must have shape {leaf.shape} after layout, got {value.shape}"
            )
        flat[path] = value
    if missing:
        raise ValueError(f"{folder} lacks the weights {missing}")
    return traverse_util.unflatten_dict(flat)


def _tensors(folder: Path) -> Mapping[str, Path]:
    """The file that holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = _read_object(index).get("weight_map")
        if not isinstance(names, dict):
            raise ValueError(f"{index} must have a weight_map from tensors to shards")
        for shard in names.values():
            if not isinstance(shard, str) or shard in ("", "..") or Path(shard).name != shard:
                raise ValueError(f"{index}: shard names must be plain file names, got {shard!r}")
        return {name: folder / shard for name, shard in names.items()}
    single = folder / "model.safetensors"
    if not single.exists():
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor its index")
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="flax")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
