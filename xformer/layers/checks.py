"""Checks of arguments while a program is traced."""

from collections.abc import Sequence

from jaxtyping import Array

from xformer.layers.cache import LayerCache


def check_shape(name: str, array: Array | None, *shapes: tuple[int, ...]) -> None:
    """Refuses an argument that broadcasting would accept and misread.

    Args:
        name: Of the argument.
        array: The argument; None means not given.
        *shapes: The shapes that it may have.

    Raises:
        ValueError: if it has another shape.
    """
    if array is not None and array.shape not in shapes:
        legal = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} must have shape {legal}, got {array.shape}")


def check_encoder(
    states: Array | None,
    mask: Array | None,
    cross: Sequence[LayerCache] | None,
    *,
    batch: int,
    width: int,
) -> None:
    """Refuses encoder states that do not fit the rows, or a mask of others than are read.

    Args:
        states: `encoder_hidden_states`; None means not given.
        mask: `encoder_attention_mask`; None means not given.
        cross: Keys and values of earlier states, which are read in place of any; None without.
        batch: Number of rows.
        width: Width of a state.

    Raises:
        ValueError: if either has another shape.
    """
    if states is not None:
        check_shape("encoder_hidden_states", states, (batch, *states.shape[1:2], width))
    read = states if cross is None else cross[0].key_BSNH
    if read is not None:
        check_shape("encoder_attention_mask", mask, read.shape[:2])


def check_tokens(
    input_ids: Array | None, inputs_embeds: Array | None, width: int
) -> tuple[int, int]:
    """Refuses tokens that are not given once, as ids or as vectors.

    Args:
        input_ids: The ids; None means not given.
        inputs_embeds: The vectors; None means not given.
        width: Width of a vector.

    Returns:
        Number of rows, and of tokens in each.

    Raises:
        ValueError: if there are both or neither, or if they have another shape.
    """
    if input_ids is not None and inputs_embeds is None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (batch, length), got {input_ids.shape}")
        return input_ids.shape[0], input_ids.shape[1]
    if inputs_embeds is not None and input_ids is None:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != width:
            raise ValueError(
                f"inputs_embeds must have shape (batch, length, {width}), got {inputs_embeds.shape}"
            )
        return inputs_embeds.shape[0], inputs_embeds.shape[1]
    raise ValueError("give exactly one of input_ids and inputs_embeds")
