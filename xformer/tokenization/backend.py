"""Reading `tokenizer.json`, the file of the `tokenizers` library, checked before it is used."""

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xformer.files import parse_object
from xformer.tokenization.folders import MAX_BACKEND_BYTES
from xformer.tokenization.guards import check_pieces, rust_errors
from xformer.tokenization.tokens import parse_token


def read_backend(content: bytes, origin: str) -> Tokenizer:
    """Builds the Rust tokenizer that a `tokenizer.json` describes.

    Args:
        content: the bytes of the file.
        origin: the file's name, for messages.

    Returns:
        The tokenizer, with the truncation and the padding that the file may ask for.

    Raises:
        ValueError: the bytes are no such file, or one whose vocabulary contradicts itself.
    """
    if len(content) > MAX_BACKEND_BYTES:
        raise ValueError(f"{origin} must not be larger than {MAX_BACKEND_BYTES} bytes")
    fields = parse_object(content, origin)
    _check_vocabulary(fields.get("model"), origin)
    _check_added(fields.get("added_tokens") or [], origin)
    with rust_errors(f"{origin} must be a file of the tokenizers library"):
        backend = Tokenizer.from_buffer(content)
    for token in fields.get("added_tokens") or []:
        if backend.token_to_id(token["content"]) != token["id"]:
            raise ValueError(
                f"{origin}: added_tokens must have the ids that the vocabulary gives them, got "
                f"{token['id']} for {token['content']!r}, which is "
                f"{backend.token_to_id(token['content'])}"
            )
    return backend


def describe_backend(backend: Tokenizer) -> bytes:
    """Tells what a Rust tokenizer does, for its identity.

    Args:
        backend: the tokenizer.

    Returns:
        The same bytes for tokenizers that do the same: neither the truncation and padding of a
        last call nor the last digits of scores, which are not kept by `tokenizer.json`, count.
    """
    fields = json.loads(backend.to_str())
    for passing in ("version", "truncation", "padding"):
        fields.pop(passing, None)
    if fields["model"]["type"] == "Unigram":
        pieces = fields["model"]["vocab"]
        fields["model"]["vocab"] = [[piece, float(np.float32(score))] for piece, score in pieces]
    return json.dumps(fields, sort_keys=True).encode()


def literal_copy(backend: Tokenizer) -> Tokenizer:
    """Makes a tokenizer of the same ids for which special tokens in a text are only text.

    `encode_special_tokens` alone is not enough: special tokens are pieces of the vocabulary too,
    with the best score of all, so that a text which spells one would still get its id.

    Args:
        backend: the tokenizer.

    Returns:
        The copy. It puts nothing around texts.
    """
    fields = json.loads(backend.to_str())
    special = {token["content"] for token in fields["added_tokens"] if token["special"]}
    # No piece of a text has a space in it: the pre-tokenizers of all families take them out.
    names = {content: f"{content} " for content in special}
    for token in fields["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = fields["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        merges = model["merges"]
        model["merges"] = [one for one in merges if not special & {*one, "".join(one)}]
    copy = Tokenizer.from_str(json.dumps(fields | {"post_processor": None}))
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _check_added(added: Any, origin: str) -> None:
    """Refuses added tokens that are none, or that take long to add."""
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict):
            raise ValueError(f"{origin}: added_tokens must be a list of objects, got {token!r:.80}")
        parse_token(token, f"{origin}: added_tokens")


def _check_vocabulary(model: Any, origin: str) -> None:
    """Refuses what the Rust library would take: ids used twice, far too large vocabularies."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        pieces: list[Any] = [
            entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary
        ]
        ids: list[Any] = list(range(len(pieces)))
    elif isinstance(vocabulary, dict):
        pieces, ids = list(vocabulary), list(vocabulary.values())
    else:
        raise ValueError(f"{origin}: model.vocab must be a list or an object")
    if not all(isinstance(piece, str) for piece in pieces):
        raise ValueError(f"{origin}: model.vocab must list [piece, score] pairs")
    check_pieces(pieces, origin)
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in pieces:
        raise ValueError(f"{origin}: model.unk_token must be in model.vocab, got {unknown!r:.80}")
    if not all(type(index) is int and index >= 0 for index in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{origin}: model.vocab must give every piece an id of its own")
    if ids and max(ids) >= 2 * len(ids):
        raise ValueError(
            f"{origin}: model.vocab must number its {len(ids)} pieces without large gaps, got the "
            f"id {max(ids)}"
        )
