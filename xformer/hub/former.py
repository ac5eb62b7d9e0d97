"""Arguments that scripts still pass to `from_pretrained`, though nothing is left for them to do."""

from collections.abc import Mapping
from typing import Any


def without_former(
    arguments: Mapping[str, Any],
    token: str | bool | None,
    legal: Mapping[str, tuple[Any, ...]] | None = None,
) -> tuple[dict[str, Any], str | bool | None]:
    """Takes the former arguments out of those of a `from_pretrained`.

    `use_auth_token` is another name of `token`. `resume_download` is what the hub's client always
    does. What `proxies` would ask for is not to be had.

    Args:
        arguments: Further arguments by name.
        token: The hub's access token, where one was given.
        legal: Further former arguments, with the values that ask for nothing.

    Returns:
        The other arguments, and the token.

    Raises:
        ValueError: if an argument asks for what is not to be had, or there are two tokens.
    """
    rest = dict(arguments)
    if rest.pop("proxies", None):  # not shown: they may have passwords in them
        raise ValueError(
            "proxies must be left out; set the environment variables HTTP_PROXY and HTTPS_PROXY"
        )
    former = rest.pop("use_auth_token", None)
    if former is not None and token is not None:
        raise ValueError("use_auth_token must be left out: it is the older name of token")
    for name, values in {"resume_download": (None, False, True), **(legal or {})}.items():
        value = rest.pop(name, values[0])
        if value not in values:
            raise ValueError(f"{name} must be one of {list(values)} or be left out, got {value!r}")
    return rest, former if token is None else token
