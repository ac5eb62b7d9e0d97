"""Calling the hub's client so that its errors say which key to change."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def asking_hub(ask: Callable[[], T], name: str) -> T:
    """Calls the hub and says in its errors which key to change.

    Args:
        ask: The call.
        name: For messages: the repository and its revision.

    Returns:
        What the call returns.

    Raises:
        EntryNotFoundError: if the repository lacks the file.
        OfflineModeIsEnabled: if the hub is not to be asked and the cache lacks the file.
        FileNotFoundError: if there is no such repository or revision.
        PermissionError: if access is denied.
        ConnectionError: if the hub cannot be reached and the cache lacks the file.
    """  # noqa: DOC501, DOC502
    from huggingface_hub import errors

    try:
        return ask()
    except errors.LocalEntryNotFoundError as error:
        # The cache had to stand in for a hub that failed for the reason given as the cause
        offline = errors.OfflineModeIsEnabled(f"{name}: not in the cache")
        raise _explained(error.__cause__ or offline, name) from error
    except Exception as error:
        # force_download turns every failure into a ValueError with the reason as its cause
        reason = error.__cause__ if isinstance(error, ValueError) else None
        raise _explained(reason or error, name) from error


def _explained(error: BaseException, name: str) -> BaseException:
    """The error to raise for one of the client's: plain, and saying which key to change."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled | errors.EntryNotFoundError):
        return error
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name}: no such branch, tag or commit; set revision")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{name} is gated: accept its terms on its page and set token to one with access"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{name}: the hub has no such repository, or a private one; check the name, or set "
            "token to one with access"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"{name}: access denied; set token to a valid one with access")
    # What the client's transport derives its errors from: a class of requests before
    # huggingface_hub 1.0, where they are OSErrors without a number, and of httpx since.
    transport = errors.HfHubHTTPError.__mro__[1]
    if isinstance(error, transport) or (isinstance(error, OSError) and error.errno is None):
        return ConnectionError(
            f"{name}: the hub could not be reached and the cache does not have the file "
            f"({error}); try again, or set local_files_only to use what is there"
        )
    return error
