"""Task heads: what a model's hidden states are turned into.

A head is chosen by a small description (the dataclasses here); the family file says which module
answers to it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """No head: the model returns hidden states."""


@dataclass(frozen=True)
class CausalLM:
    """Scores of the next token at every position."""


Head = Base | CausalLM
"""Any head description."""
