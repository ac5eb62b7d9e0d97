"""Texts in, texts out: a model with its tokenizer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from xformer.distributed import on_host
from xformer.generation.decode import (
    bucket,
    compiled_search,
    left_pad,
    prompts_of,
)
from xformer.generation.decoders import Prompts
from xformer.generation.decoding import Decoding
from xformer.generation.search import Limits
from xformer.generation.streaming import stream_tokens
from xformer.models.build import Module
from xformer.tokenization.base import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what an unfinished character decodes to
_SETTLED = re.compile(r".*[^ ]{3}", re.DOTALL)
"""What cleaning up leaves as it is, whatever follows: it changes a space and the next three."""


@dataclass(frozen=True)
class Written:
    """One continuation.

    Attributes:
        text: What was written, without the prompt.
        score: Of its beam; None without beams.
    """

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Writer:
    """Continues texts, or for encoder-decoders answers them.

    Attributes:
        module: A model that predicts next tokens; best with looped layers.
        params: Its parameters.
        tokenizer: Its tokenizer.
        decoding: How tokens are chosen.
        max_new_tokens: Most tokens to write.
        min_new_tokens: Fewest.
    """

    module: Module
    params: Any
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding
    max_new_tokens: int
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            ValueError: naming the key.
        """
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1 and not below "
                f"min_new_tokens={self.min_new_tokens}"
            )

    def write(self, texts: Sequence[str], key: PRNGKeyArray) -> list[list[Written]]:
        """Continues texts, all in one call of a compiled program.

        Args:
            texts: The prompts.
            key: Random key of sampling.

        Returns:
            For each text `decoding.num_return_sequences` continuations.

        Raises:
            ValueError: if there is no text, or one has no token.
        """
        encoded = [self._encode(text) for text in texts]
        prompts, room = self._prompts(encoded)
        search = compiled_search(self.module, room, self.decoding)
        found = on_host(search(self.params, prompts, self._limits, key))
        new = found.sequences_BS[:, prompts.ids_BP.shape[1] :]
        copies = self.decoding.num_return_sequences
        scores = found.scores.tolist() if self.decoding.beams else [None] * len(new)
        made = [
            Written(self._clean(self._text(encoded[row // copies], tokens.tolist())), score)
            for row, (tokens, score) in enumerate(zip(new, scores, strict=True))
        ]
        return [made[row : row + copies] for row in range(0, len(made), copies)]

    def stream(self, text: str, key: PRNGKeyArray, *, every: int = 1) -> Iterator[str]:
        """Continues one text and gives what is written while it is written.

        Args:
            text: The prompt.
            key: Random key of sampling.
            every: Number of tokens between two pieces.

        Returns:
            Pieces of text; a character of several tokens comes when it is whole.

        Raises:
            ValueError: if the text has no token, or with beams or several sequences.
        """
        if self.decoding.num_return_sequences > 1:
            raise ValueError("a stream is one text: num_return_sequences must be 1")
        prompt = self._encode(text)
        prompts, room = self._prompts([prompt])
        blocks = stream_tokens(
            self.module,
            self.params,
            prompts,
            self._limits,
            key,
            room=room,
            decoding=self.decoding,
            every=every,
        )
        return self._pieces(prompt, (block[0].tolist() for block in blocks))

    @property
    def _reads_source(self) -> bool:
        return bool(self.module.config.is_encoder_decoder)

    @property
    def _limits(self) -> Limits:
        numbers = (0, self.min_new_tokens, self.max_new_tokens)
        return Limits(*(jnp.asarray(number, jnp.int32) for number in numbers))

    def _encode(self, text: str) -> list[int]:
        if self._reads_source:
            return self.tokenizer.encode(text)
        return prompt_ids(self.tokenizer, text)

    def _prompts(self, encoded: Sequence[Sequence[int]]) -> tuple[Prompts, int]:
        """A batch, and the room for its new tokens."""
        config, longest = self.module.config, max(map(len, encoded), default=0)
        width, room = bucket(config, longest, self.max_new_tokens)
        ids, mask = left_pad(encoded, self.decoding.pad_token_id, multiple=width)
        if self._reads_source:  # an encoder is trained with the padding behind
            for row, prompt in enumerate(encoded):
                ids[row], mask[row] = (np.roll(x[row], len(prompt)) for x in (ids, mask))
        start = self.decoding.decoder_start_token_id
        prompts = prompts_of(
            config, jnp.asarray(ids), jnp.asarray(mask), decoder_start_token_id=start
        )
        return prompts, room

    def _text(self, prompt: list[int], new: list[int]) -> str:
        """The text of new tokens, not cleaned up yet."""
        new = self._until_end(new)
        return continuation(self.tokenizer, [] if self._reads_source else prompt, new)

    def _clean(self, text: str) -> str:
        """A text as the tokenizer's `decode` would give it."""
        cleans = self.tokenizer.clean_up_tokenization_spaces
        return self.tokenizer.clean_up_tokenization(text) if cleans else text

    def _settled(self, text: str) -> str:
        """The beginning of a text that will not change when more tokens follow, cleaned up."""
        text = text.rstrip(_REPLACEMENT)
        if not self.tokenizer.clean_up_tokenization_spaces:
            return text
        settled = _SETTLED.match(text)
        return self._clean(settled[0]) if settled else ""

    def _until_end(self, new: list[int]) -> list[int]:
        """New tokens up to the end token: what follows is filling."""
        ends = [place for place, token in enumerate(new) if token in self.decoding.eos_token_ids]
        return new[: ends[0]] if ends else new[: self.max_new_tokens]

    def _pieces(self, prompt: list[int], blocks: Iterable[list[int]]) -> Iterator[str]:
        new: list[int] = []
        shown = text = ""
        for block in blocks:
            new += block
            text = self._text(prompt, new)
            whole = self._settled(text)
            if len(whole) > len(shown) and whole.startswith(shown):
                yield whole[len(shown) :]
                shown = whole
        if rest := self._clean(text)[len(shown) :]:
            yield rest


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that goes on: what training puts before a document, and nothing behind.

    Args:
        tokenizer: The tokenizer.
        text: The prompt.

    Returns:
        Its ids.
    """
    before, _ = tokenizer.document_affixes
    return before + tokenizer.encode(text, add_special_tokens=False)


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """The text of new tokens as it follows the prompt; alone they would lose a leading space.

    It is not cleaned up, whatever the tokenizer's `clean_up_tokenization_spaces` says.

    Args:
        tokenizer: The tokenizer.
        prompt: The tokens before; none for a text that begins.
        new: The new tokens.

    Returns:
        Their text.
    """
    before, whole = (
        # Cleaning up could change the text of the prompt when tokens follow.
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (prompt, prompt + new)
    )
    return whole[len(before) :]
