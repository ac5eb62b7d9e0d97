"""Tokens as JSON files hold them: a text, or an object with its content and flags."""

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken

MAX_TOKEN_CHARACTERS = 1000  # the time to add a token grows with the square of its length
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def parse_token(value: Any, where: str) -> str | AddedToken:
    """Reads a token as JSON files hold it.

    Args:
        value: a str, an object with `content` and flags, or an AddedToken.
        where: the file and key, for the message.

    Returns:
        The str, or the token of an object.

    Raises:
        ValueError: it is none of these, or a text too long for a token.
    """
    content = value.get("content") if isinstance(value, dict) else str(value)
    if content == "":
        raise ValueError(f"{where} must not be empty; leave it out, or null")
    if isinstance(content, str) and len(content) > MAX_TOKEN_CHARACTERS:
        raise ValueError(
            f"{where} must be a text of at most {MAX_TOKEN_CHARACTERS} characters, got "
            f"{len(content)}: {content!r:.80}"
        )
    if isinstance(value, str | AddedToken):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{where} must be a text or an object with its content, got {value!r:.80}")
    flags = {key: value[key] for key in _FLAGS if value.get(key) is not None}
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{where}: {key} must be true or false, got {flag!r:.80}")
    return AddedToken(value["content"], **flags)


def token_fields(token: AddedToken) -> dict[str, Any]:
    """Gives a token as JSON files hold it.

    Args:
        token: the token.

    Returns:
        Its content and flags.
    """
    return {"content": token.content, **{key: getattr(token, key) for key in _FLAGS}}


def unique_tokens(where: str, listed: Iterable[tuple[Any, Any]]) -> dict[int, AddedToken]:
    """Reads a table of tokens, in which each has one id and each id has one token.

    Args:
        where: the file and key, for the message.
        listed: ids (numbers, or texts of them) with tokens (objects, or AddedTokens).

    Returns:
        The tokens by id, ascending.

    Raises:
        ValueError: an id is none, a token is none, or one of them is there twice.
    """
    added: dict[int, AddedToken] = {}
    contents = set()
    for index, value in listed:
        text = str(index)
        if isinstance(index, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{where}: ids must be whole numbers below 10^9, got {text:.80}")
        token = parse_token(value, f"{where}: {text}")
        if isinstance(token, str):
            raise ValueError(
                f"{where}: {text} must be an object with its content, got {token!r:.80}"
            )
        if token.content in contents or int(text) in added:
            raise ValueError(f"{where}: {token.content!r:.80} must be one text with one id, {text}")
        contents.add(token.content)
        added[int(text)] = token
    return dict(sorted(added.items()))


def parse_tokens(value: Any, where: str) -> list[str | AddedToken]:
    """Reads a list of tokens as JSON files hold it.

    Args:
        value: a list of what `parse_token` reads.
        where: the file and key, for the message.

    Returns:
        The tokens.

    Raises:
        ValueError: it is no such list.
    """
    return [parse_token(one, where) for one in check_list(value, where)]


def check_list(value: Any, where: str) -> Sequence[Any]:
    """Refuses what is no list.

    Args:
        value: should be a list.
        where: the file and key, for the message.

    Returns:
        The list.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {value!r:.80}")
    return value
