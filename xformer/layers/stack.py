"""A stack of equal blocks: unrolled or scanned, stored or recomputed.

The only file that knows these choices. A block is a Linen module called as

    block(x_BTD, inputs, context) -> (x_BTD, outputs)

with `inputs` and `outputs` its own (a cache, a key, attention probabilities) and `context` shared
by all blocks (masks, encoder states).

Parameters of a looped stack are `0/...`, `1/...`, and so on; those of a scanned stack are
`stacked/...` with a leading axis "layers". Both start from the same numbers for the same key, and
`restack` turns one tree into the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.dropout import split_key
from xformer.layers.execution import HOST_MEMORY, Execution
from xformer.layers.linear import GROUPED_PRODUCT

STACKED = "stacked"
_ENTERED = "entered"  # what the policy "offload" calls the input of a block
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "minimal": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(GROUPED_PRODUCT),
    ),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_ENTERED],
        offload_src="device",
        offload_dst=HOST_MEMORY,
    ),
}


@struct.dataclass
class StackOutput:
    """What a stack returns.

    Attributes:
        x_BTD: The output of the last block.
        outputs: The blocks' own outputs, from the bottom.
        inputs_BTD: What entered each block, if asked for, else None.
    """

    x_BTD: Float[Array, "B T D"]
    outputs: tuple[Any, ...]
    inputs_BTD: tuple[Float[Array, "B T D"], ...] | None = None


class Stack(nn.Module):
    """Blocks applied one after the other.

    Attributes:
        block: Makes a block; called with `parent=None`.
        num_layers: Number of blocks.
        execution: Whether they are looped or scanned, and what the backward pass recomputes.
        layerdrop: Probability of skipping a block in training (Fan et al., 2019,
            arXiv:1909.11556), drawn for each block and call.
        count_key: The field of a config that `num_layers` is, for messages.
    """

    block: Callable[..., nn.Module]
    num_layers: int
    execution: Execution = Execution()
    layerdrop: float = 0.0
    count_key: str = "the config's number of layers"

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        inputs: Sequence[Any],
        context: Any,
        *,
        key: PRNGKeyArray | None = None,
        keep_inputs: bool = False,
    ) -> StackOutput:
        """Applies the blocks.

        Args:
            x_BTD: What enters the first block.
            inputs: One pytree per block, all of one structure.
            context: Shared by all blocks.
            key: Random key of LayerDrop; None means evaluation, where no block is skipped.
            keep_inputs: Whether the output carries what entered each block.

        Returns:
            The last block's output and what the blocks returned beside it.
        """
        block = self.block(parent=None)
        params = self._params(block, x_BTD, inputs[0], context)
        keys = split_key(key if self.layerdrop else None, self.num_layers)

        def step(x_BTD: Array, params: Any, inputs: Any, key: PRNGKeyArray | None) -> Any:
            if self.execution.remat == "offload":
                x_BTD = checkpoint_name(x_BTD, _ENTERED)
            y_BTD, outputs = block.apply({"params": params}, x_BTD, inputs, context)
            if key is not None:
                y_BTD = jnp.where(jax.random.bernoulli(key, self.layerdrop), x_BTD, y_BTD)
            y_BTD = nn.with_logical_constraint(y_BTD, ("act_batch", "act_length", "act_embed"))
            return y_BTD, (outputs, x_BTD if keep_inputs else None)

        if self.execution.remat != "none":
            policy = _POLICIES[self.execution.remat]
            step = jax.checkpoint(step, policy=policy, prevent_cse=self.execution.layers == "loop")
        run = self._scan if self.execution.layers == "scan" else self._loop
        x_BTD, collected = run(step, x_BTD, params, inputs, keys)
        outputs, entered = zip(*collected, strict=True)
        return StackOutput(x_BTD, outputs, entered if keep_inputs else None)

    def _check(self, params: Mapping[str, Any]) -> None:
        """Refuses parameters of the other form, or of another number of layers."""
        place = "/".join(self.path)
        name = STACKED if self.execution.layers == "scan" else "0"
        if name not in params and (name == STACKED or STACKED in params):
            raise ValueError(
                f"the parameters at {place} have no {name!r}: they are those of a "
                f"{'looped' if name == STACKED else 'scanned'} stack; convert them with restack() "
                "or change Execution.layers"
            )
        if name == STACKED:
            wrong = {leaf.shape[0] for leaf in jax.tree.leaves(params[name])} - {self.num_layers}
        else:
            found = {one for one in params if one.isdigit()}
            wrong = {len(found)} if found != set(map(str, range(self.num_layers))) else set()
        if wrong:
            raise ValueError(
                f"the parameters at {place} have {min(wrong)} layers and the config asks for "
                f"{self.num_layers}; change {self.count_key}"
            )

    def _loop(self, step: Callable, x_BTD: Array, params: Any, inputs: Any, keys: Any) -> Any:
        collected = []
        for layer in range(self.num_layers):
            x_BTD, out = step(x_BTD, params[str(layer)], inputs[layer], keys[layer])
            collected.append(out)
        return x_BTD, collected

    def _scan(self, step: Callable, x_BTD: Array, params: Any, inputs: Any, keys: Any) -> Any:
        inputs, keys = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *t) for t in (inputs, keys))
        x_BTD, stacked = jax.lax.scan(
            lambda x_BTD, layer: step(x_BTD, *layer), x_BTD, (params[STACKED], inputs, keys)
        )
        unstack = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(self.num_layers)]
        return x_BTD, unstack

    def _params(self, block: nn.Module, x_BTD: Array, inputs: Any, context: Any) -> Any:
        """The blocks' parameters, made on initialisation from one key per layer."""
        if not self.is_initializing():
            params = self.variables.get("params", {})
            self._check(params)
            return params
        root = self.make_rng("params")

        def init(layer: Array | int) -> Any:
            return block.init(jax.random.fold_in(root, layer), x_BTD, inputs, context)["params"]

        if self.execution.layers == "scan":
            boxed = jax.vmap(init)(jnp.arange(self.num_layers))
            boxed = nn.meta.add_axis(boxed, 0, {nn.PARTITION_NAME: "layers"})
            return {STACKED: self.param(STACKED, lambda _: boxed)}
        layers = {str(i): init(i) for i in range(self.num_layers)}
        return {name: self.param(name, lambda _, tree=tree: tree) for name, tree in layers.items()}


def restack(tree: Any, layers: str) -> Any:
    """Converts every stack in a pytree: parameters, or anything that holds trees shaped like them.

    Args:
        tree: A pytree of arrays in which a looped stack is a dict with the keys "0", "1", ... whose
            values are alike, and a scanned one a dict with the key "stacked".
        layers: The form wanted, "loop" or "scan".

    Returns:
        The same tree with its stacks in that form; other parts are untouched.
    """

    def convert(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        if set(node) == {STACKED} and layers == "loop":
            count = jax.tree.leaves(node)[0].shape[0]
            return {
                str(i): jax.tree.map(lambda leaf, i=i: leaf[i], node[STACKED]) for i in range(count)
            }
        if set(node) == {STACKED}:
            return node
        if _is_looped(node) and layers == "scan":
            ordered = [node[str(i)] for i in range(len(node))]
            return {STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)}
        return {name: restack(value, layers) for name, value in node.items()}

    return jax.tree.map(convert, tree, is_leaf=lambda node: isinstance(node, Mapping))


def looped_shapes(shapes: Any) -> Any:
    """The shapes of looped stacks from those of scanned ones, without tracing every layer.

    Args:
        shapes: A pytree of `jax.ShapeDtypeStruct`s, boxed with their axes or not, in which scanned
            stacks are dicts with the key "stacked".

    Returns:
        The pytree with a dict "0", "1", ... for each of them; layers share their parts.
    """
    if not isinstance(shapes, Mapping):
        return shapes
    if set(shapes) != {STACKED}:
        return {name: looped_shapes(value) for name, value in shapes.items()}
    count = jax.tree.leaves(shapes)[0].shape[0]
    layer = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes[STACKED]
    )
    layer = nn.meta.remove_axis(layer, 0, {nn.PARTITION_NAME: "layers"})
    return {str(i): layer for i in range(count)}


def _is_looped(node: Mapping) -> bool:
    """Whether a dict holds the blocks of a looped stack, all of one structure and shape."""
    if not node or set(node) != {str(i) for i in range(len(node))}:
        return False
    forms = [jax.tree.map(jnp.shape, node[str(i)]) for i in range(len(node))]
    return isinstance(forms[0], Mapping) and all(form == forms[0] for form in forms)
