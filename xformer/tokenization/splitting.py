"""Splitting a text at added tokens, before a tokenizer's own algorithm sees the rest."""

import re
from collections.abc import Iterable

from tokenizers import AddedToken


class TokenSplitter:
    """Finds added tokens in texts: the leftmost first, the longest of those that begin there."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        """Prepares the search.

        Args:
            tokens: the tokens to find, none of them empty.
        """
        self._tokens = {token.content: token for token in tokens}
        self._lengths = sorted({len(content) for content in self._tokens}, reverse=True)
        first = "".join(sorted({content[0] for content in self._tokens}))
        self._begin = re.compile(f"[{re.escape(first)}]") if first else None

    def __bool__(self) -> bool:
        """Whether there is a token to find."""
        return bool(self._tokens)

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Splits a text, and strips or glues as the flags of the tokens found there say.

        A token with `lstrip` or `rstrip` takes the white space on that side with it.  One with
        `single_word` is none where its neighbour is another character than a space.

        Args:
            text: any text.

        Returns:
            The parts, none of them empty, and whether each is an added token.
        """
        parts = self._cut(text)
        for i, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            left = parts[i - 1] if i > 0 else ""
            right = parts[i + 1] if i + 1 < len(parts) else ""
            if token.rstrip and right:
                parts[i + 1] = right.lstrip()
            if token.lstrip and left:
                parts[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                parts[i - 1] += part
                parts[i] = ""
            elif token.single_word and right and right[0] != " ":
                parts[i + 1] = part + parts[i + 1]
                parts[i] = ""
        return [(part, part in self._tokens) for part in parts if part]

    def _cut(self, text: str) -> list[str]:
        parts, done, at = [], 0, self._next(text, 0)
        while at is not None:
            content = self._token_at(text, at)
            if content:
                parts += [text[done:at], content] if done < at else [content]
                done = at + len(content)
            at = self._next(text, max(done, at + 1))
        return [*parts, text[done:]] if done < len(text) else parts

    def _next(self, text: str, start: int) -> int | None:
        """Where the next character is that a token begins with."""
        found = self._begin and self._begin.search(text, start)
        return found.start() if found else None

    def _token_at(self, text: str, at: int) -> str | None:
        ends = (text[at : at + length] for length in self._lengths)
        return next((content for content in ends if content in self._tokens), None)
