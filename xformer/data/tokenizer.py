"""The tokenizer of a folder, as data and training use it."""

import os
from pathlib import Path
from typing import Any

from xformer.files import check_mounted
from xformer.hub import Source, open_source
from xformer.tokenization.auto import class_by_model_file, named_class
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.tokenization.folders import CONFIG_FILE


def has_tokenizer(source: Source) -> bool:
    """Whether a model's files hold a tokenizer of a known family."""
    kind = named_class(source) or class_by_model_file(source)
    return kind is not None and any(map(source.file, kind.vocab_files_names.values()))


def load_tokenizer(
    folder: str | os.PathLike[str] | Source, *, fast: bool = False
) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of the family that a folder names; nothing is downloaded.

    Where no file names a family, it is the one that calls its model file as the folder's is called.
    It is the slow kind where the folder has that file, so that its ids and its fingerprint do not
    depend on whether somebody has put a `tokenizer.json` beside it. With `fast` it is the fast
    kind, which says the characters of each token; where there is no `tokenizer.json`, it is made
    from the model file.

    Args:
        folder: a local folder, or the opened files of a model.
        fast: whether the fast kind is wanted, for its offsets, rather than the slow one.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: there is no such folder, or no vocabulary in it.
        ValueError: its files are damaged, of no family or an unknown one, or name no token for
            padding or for what goes around a document; or it is an address in a bucket.
    """
    if not isinstance(folder, Source):
        check_mounted(folder, "tokenizer")
    # A path is never taken for a name of the hub.
    source = folder if isinstance(folder, Source) else open_source(Path(folder))
    path = Path(source.name)
    family = named_class(source) or class_by_model_file(source)
    if family is None:
        raise ValueError(f"{path} must name its family: set tokenizer_class in {CONFIG_FILE}")
    slow = family.slow_tokenizer_class
    has_model = slow is not None and all(map(source.file, slow.vocab_files_names.values()))
    kind = slow if slow is not None and has_model and not fast else family
    tokenizer = kind.from_source(source, {"name_or_path": os.fspath(path)})
    try:
        tokenizer.required_id("pad_token")
        _ = tokenizer.document_affixes
    except ValueError as error:
        raise ValueError(f"{path / CONFIG_FILE}: {error}") from error
    return tokenizer


class WorkerTokenizer:
    """A tokenizer that reaches worker processes as the path of its folder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a tokenizer.

        Args:
            tokenizer: what `load_tokenizer` gave.
        """
        self._tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self._folder = tokenizer.name_or_path
        self._fingerprint = tokenizer.fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the tokenizer behind."""
        return {**self.__dict__, "_tokenizer": None}

    def get(self) -> PreTrainedTokenizerBase:
        """Gives the tokenizer, reading it where this process has not yet.

        Returns:
            The tokenizer.

        Raises:
            ValueError: it is another one by now.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder)
            if self._tokenizer.fingerprint() != self._fingerprint:
                raise ValueError(f"{self._folder} must not change during training")
        return self._tokenizer
