"""The tokenizer of a folder, as data and training use it."""

import os
from pathlib import Path

from xformer.tokenization.auto import AutoTokenizer
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.tokenization.folders import TOKENIZER_FILE


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of the family that a folder names; nothing is downloaded.

    It is the slow kind where the folder has its model file, so that its ids and its fingerprint do
    not depend on whether somebody has put a `tokenizer.json` beside it.

    Args:
        folder: a local folder.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: there is no such folder, or no vocabulary in it.
        ValueError: its files are damaged or of an unknown family.
    """
    path = Path(folder)
    try:
        return AutoTokenizer.from_pretrained(path, use_fast=False)
    except FileNotFoundError:
        if not (path / TOKENIZER_FILE).is_file():
            raise
        return AutoTokenizer.from_pretrained(path)
