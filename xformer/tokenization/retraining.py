"""A new vocabulary for a fast tokenizer: the same normalization and splitting, other texts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from xformer.tokenization.guards import rust_errors
from xformer.tokenization.special_tokens import Token
from xformer.tokenization.tokens import token_fields

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def retrain(
    backend: Tokenizer,
    texts: Iterable[Any],
    *,
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[Token],
    renamed: Mapping[str, str],
    options: Mapping[str, Any],
) -> Tokenizer:
    """Learns a vocabulary, with the special tokens of a tokenizer in front.

    Args:
        backend: what the new one is like, but for its vocabulary.
        texts: what is learned from: texts, or batches of them.
        vocab_size: number of ids wanted, special tokens included.
        length: number of texts, for the progress bar.
        new_special_tokens: further ones, behind those of `backend`.
        renamed: new text of special tokens that are to have another.
        options: further arguments of the library's trainer.

    Returns:
        The new tokenizer.

    Raises:
        ValueError: the trainer refuses the texts or the options, or a special token that the
            templates name is not in the new vocabulary.
    """
    fields = json.loads(backend.to_str())
    added, templates = fields.pop("added_tokens"), fields.pop("post_processor")
    model = fields["model"]
    arguments = _emptied(model, renamed)
    if "ByteLevel" in json.dumps(fields["pre_tokenizer"]):
        arguments["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    special = [
        rename_token(AddedToken(**_flags(token)), renamed)
        for token in added
        if token["special"] or model["type"] == "Unigram"
    ]
    with rust_errors("the texts and the trainer's arguments must suit the tokenizer"):
        trainer = _TRAINERS[model["type"]](
            vocab_size=vocab_size,
            special_tokens=[*special, *new_special_tokens],
            **{**arguments, **options},
        )
        tokenizer = Tokenizer.from_str(json.dumps(fields))
        tokenizer.train_from_iterator(texts, length=length, trainer=trainer)
        found = json.loads(tokenizer.to_str())
        found["post_processor"] = _with_ids(templates, tokenizer, renamed)
        return Tokenizer.from_str(json.dumps(found))


def _emptied(model: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Takes the vocabulary out of a model; gives what the trainer must be told of it."""
    if model["type"] == "Unigram":
        if model["unk_id"] is None:
            return {}
        unknown = model["vocab"][model["unk_id"]][0]
        unknown = renamed.get(unknown, unknown)
        model.update(vocab=[[unknown, 0.0]], unk_id=0)
        return {"unk_token": unknown}
    model["vocab"] = {}
    model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if model["type"] != "BPE":
        return {}
    model["merges"] = []
    kept = ("continuing_subword_prefix", "end_of_word_suffix")
    return {key: model[key] for key in kept if model[key] is not None}


def _with_ids(templates: Any, tokenizer: Tokenizer, renamed: Mapping[str, str]) -> Any:
    """The post-processor with the texts and ids that its special tokens have now."""
    if templates is None:
        return None
    for special in templates.get("special_tokens", {}).values():
        special["tokens"] = [renamed.get(token, token) for token in special["tokens"]]
        special["ids"] = [_id_of(token, tokenizer) for token in special["tokens"]]
    for role in templates.keys() & {"cls", "sep"}:
        token = renamed.get(templates[role][0], templates[role][0])
        templates[role] = [token, _id_of(token, tokenizer)]
    return templates


def _id_of(token: str, tokenizer: Tokenizer) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"the new vocabulary must have {token!r}, which is put around every text")
    return index


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key not in ("id", "special")}


def rename_token(token: Token, renamed: Mapping[str, str]) -> Token:
    """Gives a token its new text.

    Args:
        token: a str or AddedToken.
        renamed: new text by old one.

    Returns:
        The token, with the flags that it had.
    """
    if isinstance(token, str):
        return renamed.get(token, token)
    fields = token_fields(token)
    return AddedToken(**fields | {"content": renamed.get(token.content, token.content)})
