"""What a tokenizer returns: a mapping from names to lists or arrays, with the way back to the text.

Tokenizers of the fast kind keep the encodings of their backend; with them a token finds its word,
its characters and its sequence.  Those of the slow kind have none, and the methods say so.
"""

from collections import UserDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import tokenizers

from xformer.tokenization.tensors import converter, moved

_Found = TypeVar("_Found")


class CharSpan(NamedTuple):
    """Characters `start` to `end - 1` of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end - 1` of a sequence."""

    start: int
    end: int


class BatchEncoding(UserDict):
    """One encoded text, or a batch of them: `input_ids`, `attention_mask`, ... by name.

    Values are also attributes (`encoding.input_ids`), and `model(**encoding)` works.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: tokenizers.Encoding | Sequence[tokenizers.Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        """Holds the values; makes arrays of them where asked to.

        Args:
            data: lists or arrays by name.
            encoding: the backend's encodings, one for each row; `None` for the slow kind.
            tensor_type: "np" or "jax" for arrays, `None` for lists.
            prepend_batch_axis: whether arrays get a leading axis of length one.
            n_sequences: 1 for single texts, 2 for pairs; taken from the encodings by default.

        Raises:
            ValueError: `tensor_type` is another, or rows of different lengths make no array.
        """
        super().__init__(data)
        if isinstance(encoding, tokenizers.Encoding):
            encoding = [encoding]
        self._encodings = None if encoding is None else list(encoding)
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, `None` where nothing says."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the encodings of a fast tokenizer are here."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[tokenizers.Encoding] | None:
        """The backend's encodings, one for each row; `None` for the slow kind."""
        return self._encodings

    def __getitem__(self, item: str | int | slice) -> Any:
        """Gives a value by its name, a row's encoding by its index, or every value's slice.

        Args:
            item: a name, an index or a slice.

        Returns:
            The value; the encoding (of a fast tokenizer); the slices by name (of a slow one).

        Raises:
            KeyError: there is no such value, or no encoding to index.
        """
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        raise KeyError(
            f"a name or a slice must index what a slow tokenizer returns, got {item!r}; rows by "
            "index exist for fast tokenizers"
        )

    def __getattr__(self, name: str) -> Any:
        """Gives a value as an attribute."""
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"{type(self).__name__} has no value {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        """Gives what a pickle or a copy holds."""
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes back what `__getstate__` gave."""
        self.__dict__.update(state)

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> "BatchEncoding":
        """Replaces lists by arrays.

        Args:
            tensor_type: "np" or "jax"; `None` leaves all as it is.
            prepend_batch_axis: whether the arrays get a leading axis of length one.

        Returns:
            This object.

        Raises:
            ValueError: `tensor_type` is another, or rows of different lengths make no array.
        """
        if tensor_type is None:
            return self
        convert = converter(tensor_type)
        for name, value in self.data.items():
            try:
                self.data[name] = convert([value] if prepend_batch_axis else value)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"the rows of {name!r} must have one length to be an array; pass padding=True "
                    "and truncation=True, leave return_tensors out, or (for overflowing tokens) "
                    "use a fast tokenizer"
                ) from error
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> "BatchEncoding":
        """Puts the arrays of JAX onto a device; NumPy arrays and lists have none, and stay.

        Args:
            device: a device or sharding of JAX, or the name of one: "cpu", "cuda", "tpu:1".
            non_blocking: whichever it is, nothing is waited for: JAX copies while Python goes on.

        Returns:
            This object.

        Raises:
            ValueError: there is no such device.
        """
        self.data = {name: moved(value, device) for name, value in self.data.items()}
        return self

    # The way back to the text, for fast tokenizers.

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Gives the tokens of a row.

        Args:
            batch_index: the row.

        Returns:
            The texts of its tokens.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        return self._row(batch_index, "tokens").tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Says which sequence of a pair the tokens of a row are from.

        Args:
            batch_index: the row.

        Returns:
            0 or 1 for each token; `None` for the special tokens put around them.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        return self._row(batch_index, "sequence_ids").sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Says which word the tokens of a row are from.

        Args:
            batch_index: the row.

        Returns:
            The word's index for each token; `None` for special tokens.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        return self._row(batch_index, "word_ids").word_ids

    def words(self, batch_index: int = 0) -> list[int | None]:
        """Says which word the tokens of a row are from: the older name of `word_ids`.

        Args:
            batch_index: the row.

        Returns:
            The word's index for each token; `None` for special tokens.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        return self.word_ids(batch_index)

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Says which sequence a token is from.

        Args:
            batch_or_token_index: the row where a second index follows, else the token of row 0.
            token_index: the token; from the end where negative.

        Returns:
            0 or 1; `None` for a special token.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("token_to_sequence", batch_or_token_index, token_index)
        return row.token_to_sequence(_from_end(index, row))

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Says which word a token is from.

        Args:
            batch_or_token_index: the row where a second index follows, else the token of row 0.
            token_index: the token; from the end where negative.

        Returns:
            The word's index in its sequence; `None` for a special token.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("token_to_word", batch_or_token_index, token_index)
        return row.token_to_word(_from_end(index, row))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Gives the tokens of a word.

        Args:
            batch_or_word_index: the row where a second index follows, else the word of row 0.
            word_index: the word.
            sequence_index: 0 or 1, the sequence of a pair.

        Returns:
            The tokens; `None` where the word has none.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("word_to_tokens", batch_or_word_index, word_index)
        return _span(TokenSpan, row.word_to_tokens(index, sequence_index))

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """Gives the characters of a token.

        Args:
            batch_or_token_index: the row where a second index follows, else the token of row 0.
            token_index: the token.

        Returns:
            The characters in the text; `None` for a special token.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("token_to_chars", batch_or_token_index, token_index)
        return _span(CharSpan, row.token_to_chars(index))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Gives the token that a character is in.

        Args:
            batch_or_char_index: the row where a second index follows, else the character of row 0.
            char_index: the character of the text.
            sequence_index: 0 or 1, the sequence of a pair.

        Returns:
            The token's index; `None` where no token has the character.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("char_to_token", batch_or_char_index, char_index)
        return row.char_to_token(index, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Gives the characters of a word.

        Args:
            batch_or_word_index: the row where a second index follows, else the word of row 0.
            word_index: the word.
            sequence_index: 0 or 1, the sequence of a pair.

        Returns:
            The characters in the text; `None` where there is no such word.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("word_to_chars", batch_or_word_index, word_index)
        return _span(CharSpan, row.word_to_chars(index, sequence_index))

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Gives the word that a character is in.

        Args:
            batch_or_char_index: the row where a second index follows, else the character of row 0.
            char_index: the character of the text.
            sequence_index: 0 or 1, the sequence of a pair.

        Returns:
            The word's index; `None` where no word has the character.

        Raises:
            ValueError: a slow tokenizer made this.
        """
        row, index = self._place("char_to_word", batch_or_char_index, char_index)
        return row.char_to_word(index, sequence_index)

    def _row(self, index: int, method: str) -> tokenizers.Encoding:
        if not self._encodings:
            raise ValueError(
                f"{method}() needs the encodings of a fast tokenizer; this was made by a slow one, "
                "use the family's ...TokenizerFast"
            )
        return self._encodings[index]

    def _place(
        self, method: str, first: int, second: int | None
    ) -> tuple[tokenizers.Encoding, int]:
        row, index = (0, first) if second is None else (first, second)
        return self._row(row, method), index


def _from_end(index: int, row: tokenizers.Encoding) -> int:
    return index + len(row) if index < 0 else index


def _span(kind: Callable[[int, int], _Found], found: tuple[int, int] | None) -> _Found | None:
    return None if found is None else kind(*found)
