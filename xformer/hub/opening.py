"""From what a user names to the source that it means."""

import os
from pathlib import Path

from xformer.hub.folder import FolderSource
from xformer.hub.repository import RepositorySource
from xformer.hub.source import HubOptions, Source


def open_source(
    name_or_path: str | os.PathLike[str] | Source, options: HubOptions | None = None
) -> Source:
    """Opens a local folder or a repository of the hub; nothing is downloaded yet.

    Args:
        name_or_path: A folder, or a repository such as "facebook/xglm-564M". A folder that exists
            wins; a path object, and a string that can only be a path (it begins with `.`, `~` or
            `/`, or has a backslash or several slashes), is never taken for a repository. A source
            that is open already is returned as it is.
        options: How a repository is resolved; `HubOptions()` where it is None.

    Returns:
        Its files.

    Raises:
        FileNotFoundError: if there is no such folder, or no `options.subfolder` in it.
        ValueError: if it is a file, or neither a folder nor a legal name of a repository.
    """
    if isinstance(name_or_path, Source):
        return name_or_path
    options = options or HubOptions()
    text = os.fspath(name_or_path)
    folder = Path(os.path.expanduser(text))
    try:
        exists = bool(text) and folder.exists()
    except OSError as error:  # a name that no file system takes
        raise ValueError(f"{text!r:.80} is no name of a folder or repository: {error}") from error
    if exists:
        return FolderSource(folder, options.subfolder)
    is_path = not isinstance(name_or_path, str) or text.startswith((".", "~", "/"))
    if is_path or "\\" in text or text.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {text}")
    return RepositorySource(text, options)
