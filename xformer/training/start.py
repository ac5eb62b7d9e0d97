"""Initial weights that come from a model that was trained before."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import traverse_util
from jaxtyping import Array, Float

from xformer import partitioning
from xformer.data.manifest import hash_file
from xformer.data.tokenizer import has_tokenizer, load_tokenizer
from xformer.files import check_mounted
from xformer.hub import HubOptions, Source, open_source
from xformer.layers.heads import Head, SequenceClassification, TokenClassification
from xformer.layers.position import RESIZINGS, resize_positions
from xformer.models.config import CONFIG_FILE, ModelConfig
from xformer.pretrained.auto import FlaxAutoModel
from xformer.pretrained.loading import Loaded, load_params
from xformer.pretrained.names import Path
from xformer.pretrained.reading import Weights, open_weights
from xformer.pretrained.reporting import check_enough
from xformer.tokenization.base import PreTrainedTokenizerBase

_POSITIONS = "max_position_embeddings"
_TABLE = "position_embeddings"
# What may differ from the model that the weights were trained in: they mean the same without it.
_FREE = {"attention_type", "block_size", "num_random_blocks", "random_blocks", _POSITIONS}
_FREE |= {
    "initializer_range",
    "initializer_factor",
    "use_cache",
    "is_decoder",
    "add_cross_attention",
    "layerdrop",
}
_SIZES = {"vocab_size", "type_vocab_size"}
# Cut alike by tokenizers that differ in nothing but the files that they were read from.
_PROBE = "Éclairs AND naïve words: don't pay 1,234.5 in 北京!"


@dataclass(frozen=True)
class Pretrained:
    """A model folder whose weights a run starts from; what it lacks (a new head) is drawn.

    Attributes:
        path: A folder in the published format, as `xformer export` writes it, or a name on the hub.
        revision: Branch, tag or commit of a hub name.
        resize_positions: How a table of positions becomes one of another length: "tile",
            "interpolate" or "fresh" (see `xformer.layers.position.resize_positions`); "" refuses
            another length.
        ignore_mismatched_sizes: Whether weights of another shape are drawn instead of refused, and
            the classifier of other labels, whatever its shape.
    """

    path: str
    revision: str = "main"
    resize_positions: str = ""
    ignore_mismatched_sizes: bool = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: naming the key.
        """
        if not self.path:
            raise ValueError("Pretrained.path must name a folder or a model on the hub, got ''")
        check_mounted(self.path, "Pretrained.path")
        if self.resize_positions not in ("", *RESIZINGS):
            raise ValueError(
                f"Pretrained.resize_positions must be '' or one of {RESIZINGS}, "
                f"got {self.resize_positions!r}"
            )

    def open(self) -> Source:
        """Opens the folder.

        Returns:
            Its files.

        Raises:
            FileNotFoundError: if there is no such folder.
        """
        return open_source(self.path, HubOptions(revision=self.revision))


def check_start(start: Pretrained, model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses weights that mean something else in the run, before anything is computed.

    Args:
        start: The folder.
        model: The architecture of the run.
        tokenizer: That of the run's data.

    Raises:
        FileNotFoundError: if the folder is no model's.
        ValueError: if its architecture or tokenizer is another one; names the key.
    """
    check_architecture(start, model)
    source = start.open()
    if has_tokenizer(source) and not _is_same_tokenizer(load_tokenizer(source), tokenizer):
        raise ValueError(
            f"the tokenizer of Run.train_data must be that of Pretrained.path {source.name}, whose "
            "weights know its ids; prepare the data with that folder as their tokenizer"
        )


def _is_same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether ids mean the same to both; fingerprints tell a slow kind from a fast one too."""
    if one.fingerprint() == other.fingerprint():
        return True
    said = [(t.get_vocab(), t.special_tokens_map, t.encode(_PROBE)) for t in (one, other)]
    return said[0] == said[1]


def weights_fingerprint(start: Pretrained) -> str:
    """Identity of the weights that a run starts from, wherever their folder lies.

    Args:
        start: The folder.

    Returns:
        64 hexadecimal digits: SHA-256 over the names and checksums of the files with the weights.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged.
    """
    weights = open_weights(start.open())
    paths = {weights.origin(name) for name in weights.names}
    sums = sorted((path.name, hash_file(path)) for path in paths)
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def check_architecture(start: Pretrained, model: ModelConfig) -> ModelConfig:
    """Refuses weights that were trained in another architecture.

    Args:
        start: The folder.
        model: The architecture of the run.

    Returns:
        The architecture of the folder.

    Raises:
        FileNotFoundError: if the folder has no config.json.
        ValueError: if an option that gives the weights their meaning differs; names the key.
    """
    stored: ModelConfig = type(model).from_file(start.open().require(CONFIG_FILE))
    free = _FREE | (_SIZES if start.ignore_mismatched_sizes else set())
    names = [one.name for one in dataclasses.fields(model) if one.compare]
    for name in names:
        is_free = name in free or name.endswith("_token_id") or "dropout" in name
        found, wanted = getattr(stored, name), getattr(model, name)
        if found != wanted and not is_free:
            raise ValueError(
                f"the model must be that of the weights it starts from: set {type(model).__name__}."
                f"{name} = {found!r}, as {start.path} has it, instead of {wanted!r}"
            )
    return stored


def read_start(
    start: Pretrained, model: ModelConfig, head: Head, shapes: Any, module_name: str
) -> Loaded:
    """Reads the weights that a run starts from, each device its own part.

    Args:
        start: The folder.
        model: The architecture of the run.
        head: What its hidden states are turned into.
        shapes: The parameters of the run as `jax.ShapeDtypeStruct`s with shardings.
        module_name: What the model is called in messages.

    Returns:
        The parameters that the folder has, and the names of what is missing and unexpected.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged, of another architecture, of other shapes, or have a
            classifier of other labels.
    """
    stored = check_architecture(start, model)
    flat = traverse_util.flatten_dict(shapes)
    resized = {}
    length = getattr(stored, _POSITIONS, 0)
    if length != getattr(model, _POSITIONS, 0):
        resized = {path: leaf for path, leaf in flat.items() if _TABLE in path}
    if resized and not start.resize_positions:
        raise ValueError(
            f"{start.path} has {length} positions and the model {getattr(model, _POSITIONS)}: set "
            f"Pretrained.resize_positions to one of {RESIZINGS}, or "
            f"{type(model).__name__}.{_POSITIONS} = {length}"
        )
    wanted = {**flat, **{p: _as_stored(leaf, length) for p, leaf in resized.items()}}
    if start.resize_positions == "fresh":
        wanted = {path: leaf for path, leaf in flat.items() if path not in resized}
    weights = open_weights(start.open())
    foreign = _foreign_classifier(start, stored, head, weights, flat)
    tree = traverse_util.unflatten_dict({p: leaf for p, leaf in wanted.items() if p not in foreign})
    loaded = load_params(
        weights,
        tree,
        FlaxAutoModel.class_for(model).weights,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, tree),
        ignore_mismatched_sizes=start.ignore_mismatched_sizes,
        ignoring="Pretrained.ignore_mismatched_sizes = True",
    )
    check_enough(loaded, shapes, module_name, start.path)
    params = traverse_util.flatten_dict(loaded.params)
    for path in resized.keys() & params.keys():
        params[path] = _resize(params[path], flat[path], start.resize_positions)
    return dataclasses.replace(
        loaded,
        params=traverse_util.unflatten_dict(params),
        missing=frozenset(flat.keys() - params.keys()),
    )


def _foreign_classifier(
    start: Pretrained, stored: ModelConfig, head: Head, weights: Weights, flat: Mapping[Path, Any]
) -> set[Path]:
    """The parameters of the head, where the folder has them for other labels; by request alone."""
    if not isinstance(head, SequenceClassification | TokenClassification):
        return set()
    table = FlaxAutoModel.class_for(stored).weights
    is_published = weights.layout == "published"
    names = {
        path: table.weight(path, len(leaf.shape))[0] if is_published else "/".join(path)
        for path, leaf in flat.items()
        if path[0] != table.prefix
    }
    found = {path for path, name in names.items() if name in weights.names}
    known = tuple(stored.id2label[index] for index in sorted(stored.id2label))
    nameless = tuple(f"LABEL_{index}" for index in range(len(known)))
    if not found or known in (tuple(head.labels), nameless):
        return set()
    if start.ignore_mismatched_sizes:
        return found
    raise ValueError(
        f"{start.path} has a classifier of other labels: set heads.{type(head).__name__}.labels = "
        f"{known!r} instead of {tuple(head.labels)!r}, or draw a new one with "
        "Pretrained.ignore_mismatched_sizes = True"
    )


def _as_stored(leaf: jax.ShapeDtypeStruct, length: int) -> jax.ShapeDtypeStruct:
    """A table of positions with the folder's number of rows, whole on every device."""
    whole = partitioning.replicated(leaf.sharding.mesh)
    return jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype, sharding=whole)


def _resize(table_PD: Float[Array, "P D"], leaf: jax.ShapeDtypeStruct, how: str) -> Array:
    make = jax.jit(
        lambda table_PD: resize_positions(table_PD, leaf.shape[0], how=how),
        out_shardings=leaf.sharding,
    )
    return make(table_PD)
