"""Arguments of `from_pretrained` that scripts still pass, though there is nothing left for them."""

from collections.abc import Mapping
from typing import Any

_ADVICE = {
    "proxies": "set the environment variables HTTP_PROXY and HTTPS_PROXY instead",
    "from_slow": "tokenizer.json is read where there is one, else the model is converted",
}


def take_older_arguments(
    options: Mapping[str, Any], token: str | bool | None
) -> tuple[dict[str, Any], str | bool | None]:
    """Takes the older arguments out of those of a tokenizer.

    `use_auth_token` is another name of `token`. `resume_download` is what the hub's client always
    does, and `verbose` would tell of special tokens that are asked for but not set, which nothing
    here does: both may be anything. What `proxies` and `from_slow` would ask for is not to be had.

    Args:
        options: the further arguments of `from_pretrained`.
        token: the hub's access token, where one was given.

    Returns:
        The other arguments, and the token.

    Raises:
        ValueError: an argument asks for what is not to be had, or there are two tokens.
    """
    left = dict(options)
    for key, advice in _ADVICE.items():
        if left.pop(key, None):  # Its value is not shown: proxies may have passwords in them.
            raise ValueError(f"{key} must be left out; {advice}")
    for key in ("resume_download", "verbose"):
        value = left.pop(key, None)
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{key} must be True, False or None, got {value!r:.80}")
    older = left.pop("use_auth_token", None)
    if older is not None and token is not None:
        raise ValueError("use_auth_token must be left out: it is the older name of token")
    return left, older if token is None else token
