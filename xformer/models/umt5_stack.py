"""The layers of UMT5's encoder and decoder; `xformer.models.umt5` says what is special of them."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from xformer.layers.attention import AttentionOutput, MultiHeadAttention, ProjectionNames
from xformer.layers.cache import Cache, LayerCache
from xformer.layers.checks import check_shape
from xformer.layers.dense_cores import dense_core
from xformer.layers.dropout import dropout, split_key
from xformer.layers.execution import Execution
from xformer.layers.feedforward import feed_forward
from xformer.layers.layer import Context, LayerInputs, LayerOutputs, layer_inputs
from xformer.layers.linear import Linear
from xformer.layers.norm import RMSNorm
from xformer.layers.relative_bias import RelativeBias
from xformer.layers.stack import Stack
from xformer.models.umt5_config import UMT5Config

_NAMES = ProjectionNames("q", "k", "v", "o")


class UMT5Attention(nn.Module):
    """A sublayer of heads: normalise, attend, add.

    Attributes:
        config: The architecture.
        execution: How it is computed.
        kind: Name of the heads in the parameter tree, "SelfAttention" or "EncDecAttention"; only
            the former have a relative bias.
        is_decoder: Whether the bias is that of keys before their query alone.
    """

    config: UMT5Config
    execution: Execution
    kind: str
    is_decoder: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | LayerCache | None = None,
        *,
        key: PRNGKeyArray | None,
        **arguments: Any,
    ) -> AttentionOutput:
        """Applies the sublayer; the arguments are those of `MultiHeadAttention`."""
        config = self.config
        keys = split_key(key, 2)
        bias = functools.partial(
            RelativeBias,
            num_heads=config.num_heads,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            bidirectional=not self.is_decoder,
            embedding_init=config.normal(config.d_model),
            name="relative_attention_bias",
        )
        attention = MultiHeadAttention(
            num_heads=config.num_heads,
            head_dim=config.d_kv,
            names=_NAMES,
            query_scale=1.0,
            core=dense_core(self.execution),
            projection=functools.partial(_projection, config),
            use_bias=False,
            dropout_rate=config.dropout_rate,
            dtype=self.execution.compute_dtype,
            relative_bias=bias if self.kind == "SelfAttention" else None,
            name=self.kind,
        )
        out = attention(
            _norm(config, self.execution, "layer_norm")(x_BTD), memory, key=keys[0], **arguments
        )
        y_BTD = dropout(_finite(out.x_BTD), config.dropout_rate, keys[1])
        return dataclasses.replace(out, x_BTD=x_BTD + y_BTD)


class UMT5FeedForward(nn.Module):
    """A feed-forward sublayer: normalise, compute, add."""

    config: UMT5Config
    execution: Execution

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], key: PRNGKeyArray | None
    ) -> Float[Array, "B T D"]:
        """Applies the sublayer."""
        keys = split_key(key, 2)
        normal_BTD = _norm(self.config, self.execution, "layer_norm")(x_BTD)
        y_BTD = _DenseReluDense(self.config, self.execution, name="DenseReluDense")(
            normal_BTD, keys[0]
        )
        return x_BTD + dropout(y_BTD, self.config.dropout_rate, keys[1])


class _DenseReluDense(nn.Module):
    """The feed-forward network under its published name."""

    config: UMT5Config
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: Array, key: PRNGKeyArray | None) -> Array:
        config, dtype = self.config, self.execution.compute_dtype
        return feed_forward(
            x_BTD,
            width=config.d_ff,
            activation=config.activation,
            names=("wi_0", "wi_1", "wo") if config.is_gated else ("wi", "wo"),
            dropout_rate=config.dropout_rate,
            use_bias=False,
            dtype=dtype,
            down_dtype=_residual_dtype(self.execution),
            kernel_init=config.normal(config.d_model),
            down_init=config.normal(config.d_ff),
            key=key,
        )


class _Sublayers(nn.Module):
    """The sublayers of a layer under their published names."""

    config: UMT5Config
    execution: Execution
    is_decoder: bool

    @nn.compact
    def __call__(
        self, x_BTD: Array, inputs: LayerInputs, context: Context
    ) -> tuple[Array, LayerOutputs]:
        keys = split_key(inputs.key, 3)
        self_attention = self._attention("SelfAttention", "0")(
            x_BTD,
            mask=context.mask,
            head_mask_N=inputs.head_mask_N,
            cache=inputs.cache,
            cache_start=context.mask.query_start,
            key=keys[0],
            return_probabilities=context.output_attentions,
        )
        x_BTD = self_attention.x_BTD
        cross_attention = None
        if self.is_decoder:
            cross_attention = self._attention("EncDecAttention", "1")(
                x_BTD,
                context.encoder_BED if inputs.cross is None else inputs.cross,
                mask=context.encoder_mask,
                head_mask_N=inputs.cross_head_mask_N,
                key=keys[1],
                return_probabilities=context.output_attentions,
            )
            x_BTD = cross_attention.x_BTD
        last = UMT5FeedForward(self.config, self.execution, name="2" if self.is_decoder else "1")
        return last(x_BTD, keys[2]), LayerOutputs.of(inputs, self_attention, cross_attention)

    def _attention(self, kind: str, name: str) -> UMT5Attention:
        return UMT5Attention(self.config, self.execution, kind, self.is_decoder, name=name)


class UMT5Block(nn.Module):
    """One layer: self-attention, in the decoder cross-attention, feed-forward."""

    config: UMT5Config
    execution: Execution
    is_decoder: bool

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], inputs: LayerInputs, context: Context
    ) -> tuple[Float[Array, "B T D"], LayerOutputs]:
        """Applies the layer; `inputs.key` switches dropout on."""
        sublayers = _Sublayers(self.config, self.execution, self.is_decoder, name="layer")
        return sublayers(x_BTD, inputs, context)


@struct.dataclass
class StackStates:
    """What encoder or decoder return.

    Attributes:
        last_BTD: The final states.
        states_BTD: What enters each layer, and the final states, if asked for.
        outputs: The layers' own outputs.
    """

    last_BTD: Float[Array, "B T D"]
    states_BTD: tuple[Float[Array, "B T D"], ...] | None
    outputs: tuple[LayerOutputs, ...]


class UMT5Stack(nn.Module):
    """Encoder or decoder: the layers and the normalisation behind them."""

    config: UMT5Config
    execution: Execution
    is_decoder: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        context: Context,
        *,
        cache: Cache | None = None,
        head_mask: Float[Array, "L N"] | None = None,
        cross_attn_head_mask: Float[Array, "L N"] | None = None,
        key: PRNGKeyArray | None = None,
        keep_states: bool = False,
    ) -> StackStates:
        """Applies the layers to embedded tokens; `key` switches dropout on."""
        config, rate = self.config, self.config.dropout_rate
        count = config.num_decoder_layers if self.is_decoder else config.num_layers
        assert count is not None
        shape = (count, config.num_heads)
        check_shape("decoder_head_mask" if self.is_decoder else "head_mask", head_mask, shape)
        check_shape("cross_attn_head_mask", cross_attn_head_mask, shape)
        first_key, last_key, *keys = split_key(key, 2 + count)
        x_BTD = dropout(x_BTD, rate, first_key).astype(_residual_dtype(self.execution))
        x_BTD = nn.with_logical_constraint(x_BTD, ("act_batch", "act_length", "act_embed"))
        inputs = layer_inputs(
            keys, cache=cache, head_mask=head_mask, cross_head_mask=cross_attn_head_mask
        )
        stack = Stack(
            functools.partial(UMT5Block, config, self.execution, self.is_decoder),
            count,
            self.execution,
            count_key=f"UMT5Config.{'num_decoder_layers' if self.is_decoder else 'num_layers'}",
            name="block",
        )(x_BTD, inputs, context, keep_inputs=keep_states)
        last_BTD = _norm(config, self.execution, "final_layer_norm")(stack.x_BTD)
        last_BTD = dropout(last_BTD, rate, last_key)
        states = None if stack.inputs_BTD is None else (*stack.inputs_BTD, last_BTD)
        return StackStates(last_BTD, states, stack.outputs)


def _norm(config: UMT5Config, execution: Execution, name: str) -> RMSNorm:
    return RMSNorm(
        config.layer_norm_epsilon, execution.compute_dtype, config.initializer_factor, name=name
    )


def _projection(config: UMT5Config, *, name: str, **arguments: Any) -> Linear:
    """A projection of the heads, whose deviation makes up for scores without a scale."""
    fans = {"q": config.d_model * config.d_kv, "o": config.num_heads * config.d_kv}
    init = config.normal(fans.get(name, config.d_model))
    return Linear(**{**arguments, "kernel_init": init}, name=name)


def _residual_dtype(execution: Execution) -> jnp.dtype:
    """Dtype of the sum of sublayers, which grows beyond what float16 holds."""
    dtype = execution.compute_dtype
    return jnp.dtype("float32") if dtype == jnp.float16 else dtype


def _finite(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Clips what float16 cannot hold, as the published model does; other dtypes are let be."""
    if x_BTD.dtype != jnp.float16:
        return x_BTD
    highest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(x_BTD, -highest, highest)
