"""The documented `generate` of the drop-in classes."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from xformer.files import read_limited
from xformer.generation.config import FILE_NAME, MAX_BYTES, GenerationConfig
from xformer.generation.decode import (
    as_output,
    compiled_search,
    in_bucket,
    prompts_of,
)
from xformer.generation.decoders import Prompts
from xformer.generation.decoding import Decoding
from xformer.generation.search import Limits
from xformer.generation.weights import decoding_execution, decoding_params
from xformer.generation.writer import Writer, prompt_ids
from xformer.hub import Source
from xformer.pretrained.model import FlaxPreTrainedModel
from xformer.pretrained.parameters import Params
from xformer.tokenization.base import PreTrainedTokenizerBase


class FlaxGenerationMixin(FlaxPreTrainedModel):
    """A model that predicts next tokens and can write text with them."""

    _generation_config: GenerationConfig | None = None
    _generation_file: tuple[bytes, str] | None = None

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model predicts next tokens."""
        return True

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings of `generate` that a call does not give; they may be assigned.

        Those of generation_config.json, or where there is none those of the model's config.
        """
        settings = self._own_settings() or GenerationConfig.from_model_config(self.config)
        self._generation_config = settings
        return settings

    @generation_config.setter
    def generation_config(self, generation_config: GenerationConfig) -> None:
        self._generation_config = generation_config

    def for_decoding(self, weights: str, params: Params | None = None) -> "FlaxGenerationMixin":
        """A copy of the model that keeps its weights in fewer bytes, for generating alone.

        Args:
            weights: What matrices are kept as: "bfloat16", in which the copy also computes, "int8",
                with a scale for each output channel, or "float32", which changes their layout.
            params: The parameters; the model's own if None.

        Returns:
            The model. It computes what this one does to the rounding of its weights, which are
            neither saved nor trained.

        Raises:
            ValueError: if there are no such weights, some are missing, or they are kept for
                decoding already.
        """
        execution = decoding_execution(self._execution, weights)
        model = copy.copy(self)
        model._config = dataclasses.replace(self._config)
        model._execution, model._module = execution, None
        model._generation_config = copy.copy(self._generation_config)
        model.dtype, model._is_initialized = execution.compute_dtype, True
        given = self._complete(self.params if params is None else params)
        model._params = decoding_params(given, weights)
        return model

    def generate(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        prng_key: PRNGKeyArray | None = None,
        trace: bool = True,
        params: Params | None = None,
        *,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        **settings: Any,
    ) -> Any:
        """Continues prompts; compiled once for each bucket of lengths and each setting.

        Args:
            input_ids: (batch, length) prompts, padded on the left; for encoder-decoders what the
                encoder reads, padded on the right.
            generation_config: The settings; the model's own if None.
            prng_key: Random key of sampling; key 0 if None.
            trace: Whether the loop is compiled. If not it runs in Python, to look into it.
            params: Parameters; the model's own if None.
            attention_mask: (batch, length) 1 for tokens, 0 for padding. If None, padding is where
                `input_ids` have the padding token, unless that ends rows too.
            decoder_input_ids: (batch, prompt) what an encoder-decoder goes on from, padded on the
                left; `decoder_start_token_id` if None, which is put before them where no row begins
                with it (not inside `jit`).
            decoder_attention_mask: (batch, prompt) 1 for its tokens, 0 for padding.
            encoder_hidden_states: (batch, encoder length, width) what a decoder with
                cross-attention (`config.add_cross_attention`) reads.
            encoder_attention_mask: (batch, encoder length) 1 for states to read; all of them if
                None.
            **settings: Fields of `GenerationConfig`, which win over `generation_config`.

        Returns:
            `FlaxGreedySearchOutput`, `FlaxSampleOutput` or `FlaxBeamSearchOutput`: `sequences`
            (batch * num_return_sequences, length of the longest row), which are prompts with their
            continuations, and `scores`: of each sequence for beams, else of each token with
            `output_scores`. Inside `jit`, rows have the full length. The sequences alone with
            `return_dict_in_generate=False`.

        Raises:
            TypeError: if there is no such setting, or one has the wrong type.
            ValueError: if the limits leave no room, a setting is out of range or not supported, or
                the arrays do not fit the kind of model or each other.
        """
        chosen = self._settings_of(generation_config, settings)
        decoding = chosen.decoding(self.config)
        if attention_mask is None:
            attention_mask = self._mask_of(input_ids, chosen, decoding)
        prompts = self._prompts(
            decoding,
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "decoder_input_ids": decoder_input_ids,
                "decoder_attention_mask": decoder_attention_mask,
                "encoder_hidden_states": encoder_hidden_states,
                "encoder_attention_mask": encoder_attention_mask,
            },
        )
        params = self.params if params is None else params
        key = jax.random.PRNGKey(0) if prng_key is None else prng_key
        with jax.disable_jit(not trace):
            sequences, scores = self._search(prompts, chosen, decoding, params, key)
        out = as_output(sequences, scores, decoding)
        return out if chosen.return_dict_in_generate else out.sequences

    def stream(
        self,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig | None = None,
        prng_key: PRNGKeyArray | None = None,
        params: Params | None = None,
        *,
        every: int = 1,
        **settings: Any,
    ) -> Iterator[str]:
        """Continues a text and gives what is written while it is written.

        For encoder-decoders the text is what the encoder reads.

        Args:
            text: The prompt.
            tokenizer: The model's tokenizer.
            generation_config: The settings; the model's own if None.
            prng_key: Random key of sampling; key 0 if None.
            params: Parameters; the model's own if None.
            every: Number of tokens between two pieces.
            **settings: Fields of `GenerationConfig`, which win over `generation_config`.

        Returns:
            Pieces of text, without the prompt; together they are what `generate` writes.

        Raises:
            TypeError: if there is no such setting, or one has the wrong type.
            ValueError: if the limits leave no room, or a setting is out of range, or beams or
                several sequences are asked for.
        """  # noqa: DOC502
        chosen = self._settings_of(generation_config, settings)
        prompt = 1 if self.config.is_encoder_decoder else len(prompt_ids(tokenizer, text))
        fewest, most = chosen.new_tokens(prompt)
        decoding = chosen.decoding(self.config)
        params = self.params if params is None else params
        writer = Writer(self.module, params, tokenizer, decoding, most, min(fewest, most))
        key = jax.random.PRNGKey(0) if prng_key is None else prng_key
        return writer.stream(text, key, every=every)

    def _settings_of(
        self, generation_config: GenerationConfig | None, settings: Mapping[str, Any]
    ) -> GenerationConfig:
        """The settings of a call."""
        base = generation_config or self._own_settings()
        base = base or GenerationConfig.from_model_config(self.config)
        return base.changed(settings)

    def _mask_of(self, ids: Any, chosen: GenerationConfig, decoding: Decoding) -> Any:
        """The mask of prompts that come without one, as PyTorch's classes make it."""
        known = chosen.pad_token_id is not None or self.config.pad_token_id is not None
        if not known or decoding.pad_token_id in decoding.eos_token_ids:
            return None
        return (ids if isinstance(ids, jax.Array) else np.asarray(ids)) != decoding.pad_token_id

    def _prompts(self, decoding: Decoding, inputs: Mapping[str, Any]) -> Prompts:
        """The arguments of a call as prompts."""
        arrays = self._arrays(inputs)
        start = decoding.decoder_start_token_id
        if self.config.is_encoder_decoder and "decoder_input_ids" in arrays:
            arrays = _begun(arrays, self.config.decoder_start_token_id if start is None else start)
        return prompts_of(self.config, **arrays, decoder_start_token_id=start)

    def _search(
        self,
        prompts: Prompts,
        chosen: GenerationConfig,
        decoding: Decoding,
        params: Params,
        key: PRNGKeyArray,
    ) -> tuple[Array, Any]:
        """Sequences and scores of prompts, by a program that prompts of one bucket share."""
        width = prompts.ids_BP.shape[1]
        fewest, most = chosen.new_tokens(width)
        inside_jit = isinstance(prompts.ids_BP, jax.core.Tracer)
        room = most
        if not inside_jit:
            prompts, room = in_bucket(self.config, prompts, most, decoding.pad_token_id)
        skip = prompts.ids_BP.shape[1] - width
        limits = Limits(*(jnp.asarray(number, jnp.int32) for number in (skip, fewest, most)))
        found = compiled_search(self.module, room, decoding)(params, prompts, limits, key)
        sequences, scores = found.sequences_BS, found.scores
        if not inside_jit:
            steps = int(found.new_tokens)
            sequences = jnp.asarray(np.asarray(sequences)[:, skip : skip + width + steps])
            scores = scores[:steps] if scores is not None and decoding.output_scores else scores
        return sequences, scores

    # Files beside the weights.

    def _read_beside(self, source: Source) -> None:
        path = source.file(FILE_NAME)
        if path is not None:  # looked into where it is used: a model that does not write needs none
            self._generation_file = (read_limited(path, MAX_BYTES), str(path))

    def _files_beside(self) -> dict[str, bytes]:
        settings = self._own_settings()
        return {} if settings is None else {FILE_NAME: settings.to_json_string().encode()}

    def _own_settings(self) -> GenerationConfig | None:
        """What was assigned or read, if anything was."""
        if self._generation_config is None and self._generation_file is not None:
            self._generation_config = GenerationConfig.from_json(*self._generation_file)
        return self._generation_config

    def prepare_inputs_for_generation(
        self, input_ids: Any, max_length: int, attention_mask: Any = None
    ) -> dict[str, Any]:
        """The arguments beside the ids of a first call with a cache, for loops of one's own.

        Args:
            input_ids: (batch, length) prompts, padded on the left.
            max_length: Most tokens of a row, prompt included.
            attention_mask: (batch, length) 1 for tokens of a prompt, 0 for padding.

        Returns:
            `past_key_values`, `attention_mask` (batch, max_length) and `position_ids`.

        Raises:
            ValueError: if the prompts are longer than `max_length`.
        """
        batch, length = jnp.shape(input_ids)
        if length > max_length:
            raise ValueError(f"max_length={max_length} must hold the prompt of {length} tokens")
        mask = jnp.ones((batch, max_length), jnp.int32)
        if attention_mask is not None:
            mask = mask.at[:, :length].set(jnp.asarray(attention_mask, jnp.int32))
        return {
            "past_key_values": self.init_cache(batch, max_length),
            "attention_mask": mask,
            "position_ids": jnp.maximum(jnp.cumsum(mask[:, :length], axis=1) - 1, 0),
        }

    def update_inputs_for_generation(
        self, model_outputs: Any, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of the next call, from the outputs and arguments of this one.

        Args:
            model_outputs: What the call returned.
            model_kwargs: What it was given beside the ids; changed in place.

        Returns:
            `model_kwargs`, with the extended cache and the position of the next token.
        """
        model_kwargs["past_key_values"] = model_outputs.past_key_values
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        return model_kwargs


def _begun(arrays: Mapping[str, Array], start: int) -> dict[str, Array]:
    """The arguments, with the start token before the decoder's prompts if no row begins with it."""
    arrays, ids = dict(arrays), arrays["decoder_input_ids"]
    if isinstance(ids, jax.core.Tracer) or (np.asarray(ids[:, :1]) == start).any():
        return arrays
    arrays["decoder_input_ids"] = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=start)
    if "decoder_attention_mask" in arrays:
        mask = arrays["decoder_attention_mask"]
        arrays["decoder_attention_mask"] = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
    return arrays
