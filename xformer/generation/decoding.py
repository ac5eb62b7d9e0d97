"""How sequences are written: everything that a compiled program depends on beside its shapes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from flax import struct
from jaxtyping import Array, Float, Int

from xformer.generation.rules import ScoreRules
from xformer.generation.sampling import Sampling

NEVER = "never"


@dataclass(frozen=True)
class Beams:
    """Beam search, in place of greedy decoding.

    Attributes:
        number: Sequences that are followed at once for each prompt; at least 2.
        length_penalty: The sum of a sequence's log probabilities is divided by its number of new
            tokens to this power: above 0 for longer sequences, below for shorter ones.
        early_stopping: True stops a prompt when `number` sequences have ended; False when no
            running one looks better than the worst of them, judged at the length reached; "never"
            judges at the length at which it would score best.
    """

    number: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: naming the key.
        """
        if self.number < 2:
            raise ValueError(f"Beams.number must be at least 2, got {self.number}")
        if self.early_stopping not in (True, False, NEVER):
            raise ValueError(
                f"Beams.early_stopping must be True, False or {NEVER!r}, "
                f"got {self.early_stopping!r}"
            )


@dataclass(frozen=True)
class Decoding:
    """How sequences are written; the default is greedy.

    Attributes:
        pad_token_id: Follows an end token.
        eos_token_ids: Tokens that end a row.
        rules: Changes to the scores of the next token.
        sampling: How a token is chosen; greedy where there are beams, which take the most likely.
        beams: Beam search; None for one sequence at a time.
        num_return_sequences: Sequences for each prompt: drawn independently, or the best beams.
        output_scores: Whether to return the scores that every token was chosen by.
        use_cache: Whether keys and values are kept; None asks `config.use_cache`.
        decoder_start_token_id: What the decoder of an encoder-decoder begins with; None asks the
            model's config.
    """

    pad_token_id: int = 0
    eos_token_ids: tuple[int, ...] = ()
    rules: ScoreRules = ScoreRules()
    sampling: Sampling = Sampling()
    beams: Beams | None = None
    num_return_sequences: int = 1
    output_scores: bool = False
    use_cache: bool | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            ValueError: naming the keys.
        """
        most = self.beams.number if self.beams else 1 if self.sampling.greedy else None
        if self.num_return_sequences < 1 or (most and self.num_return_sequences > most):
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} must be at least 1 and at most "
                f"num_beams={most or 'any'}, or set do_sample=True"
            )
        if self.beams and not self.sampling.greedy:
            raise ValueError("do_sample=True needs num_beams=1: beams take the likeliest tokens")
        if self.beams and self.output_scores:
            raise ValueError(
                "output_scores=True needs num_beams=1: beam search returns the scores of its "
                "sequences, always"
            )

    def caches(self, config: Any) -> bool:
        """Whether keys and values are kept, with a model of this config."""
        return config.use_cache if self.use_cache is None else self.use_cache

    @classmethod
    def of(cls, config: Any, **fields: Any) -> "Decoding":
        """A decoding with the padding and end tokens of a model's config.

        Args:
            config: The architecture.
            **fields: The other fields.

        Returns:
            The decoding.
        """
        eos = token_ids(config.eos_token_id)
        rules = dataclasses.replace(fields.pop("rules", ScoreRules()), eos_token_ids=eos)
        return cls(pad_token_id=config.pad_token_id, eos_token_ids=eos, rules=rules, **fields)


@struct.dataclass
class Found:
    """What a search found.

    Attributes:
        sequences_BS: Places left free, the prompts, and their continuations.
        new_tokens: Number of new tokens of the longest row.
        scores: Of every sequence for beams, else (step, row, token) of the tokens if asked for.
    """

    sequences_BS: Int[Array, "B S"]
    new_tokens: Int[Array, ""]
    scores: Float[Array, " B"] | Float[Array, "U B V"] | None = None


def token_ids(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """One token, several or none, as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
