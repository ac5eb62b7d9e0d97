"""The layers of an encoder whose attention may be block-sparse: what its families agree on."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.block_sparse import pad_blocks
from xformer.layers.cache import Cache
from xformer.layers.execution import Execution
from xformer.layers.layer import Context, LayerOutputs, layer_inputs
from xformer.layers.stack import Stack, StackOutput
from xformer.models.block_attention import BlockConfig, choose_attention


class BlockEncoder(nn.Module):
    """The layers, and which blocks of a long sequence they read.

    Attributes:
        block: Makes a layer; called with (config, execution, core).
        config: The architecture.
        execution: How it is computed.
    """

    block: Callable[..., nn.Module]
    config: BlockConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        context: Context,
        keys: Sequence[PRNGKeyArray | None],
        *,
        cache: Cache | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        keep_inputs: bool = False,
    ) -> StackOutput:
        """Applies the layers, to whole blocks inside.

        Args:
            x_BTD: Embedded tokens.
            context: What all layers share.
            keys: For each layer a random key, which switches dropout on, or None.
            cache: Keys and values of earlier tokens. Its length decides on the blocks, so that each
                token finds the same ones.
            head_mask: Factor on the attention probabilities of each layer and head.
            keep_inputs: Whether the output carries what entered each layer.

        Returns:
            What leaves the layers, for the tokens that entered.
        """
        config, length = self.config, x_BTD.shape[1]
        keys_read = length if cache is None else cache.max_length
        chosen = choose_attention(config, keys_read, self.execution)
        if cache is None:
            x_BTD, mask = pad_blocks(x_BTD, context.mask, chosen.multiple)
            context = dataclasses.replace(context, mask=mask)
        block = functools.partial(self.block, config, self.execution, chosen.core)
        count_key = f"{type(config).__name__}.num_hidden_layers"
        stack = Stack(
            block, config.num_hidden_layers, self.execution, count_key=count_key, name="layer"
        )
        inputs = layer_inputs(keys, cache=cache, head_mask=head_mask, random_blocks=chosen.plans)
        out = stack(x_BTD, inputs, context, keep_inputs=keep_inputs)
        return out if x_BTD.shape[1] == length else _cut(out, length)


def _cut(out: StackOutput, length: int) -> StackOutput:
    """Takes the padding of `pad_blocks` off again."""

    def of_layer(one: LayerOutputs) -> LayerOutputs:
        self_BNTS, cross_BNTE = one.attention_BNTS, one.cross_attention_BNTE
        return dataclasses.replace(
            one,
            attention_BNTS=None if self_BNTS is None else self_BNTS[:, :, :length, :length],
            cross_attention_BNTE=None if cross_BNTE is None else cross_BNTE[:, :, :length],
        )

    entered = out.inputs_BTD
    return StackOutput(
        out.x_BTD[:, :length],
        tuple(of_layer(one) for one in out.outputs),
        None if entered is None else tuple(x_BTD[:, :length] for x_BTD in entered),
    )
