"""From the bytes of a row to its text."""

import json

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet


class BadRowError(ValueError):
    """A row that holds no usable text; the message is the reason."""


def decode_text(content: bytes) -> str:
    """Decodes UTF-8.

    Args:
        content: the bytes.

    Returns:
        The text.

    Raises:
        BadRowError: they are not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 ({error.reason} at byte {error.start})") from error


def decode_json(content: bytes, key: str) -> str:
    """Finds the text in a JSON object.

    Args:
        content: the bytes of the object.
        key: the key of the text.

    Returns:
        The text.

    Raises:
        BadRowError: they are no JSON object, or have no string under the key.
    """
    try:
        row = json.loads(decode_text(content))
    except BadRowError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise BadRowError(f"text_key={key!r} must name a string: {_shape(row)}")
    text = row[key]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("text holds half a surrogate pair") from error
    return text


def decode_example(content: bytes, key: str) -> str:
    """Finds the text in a serialized `tf.train.Example`.

    Args:
        content: the bytes of the message.
        key: the name of the feature that holds the text.

    Returns:
        The text.

    Raises:
        BadRowError: they are no such message, or the feature is not one string of bytes.
    """
    features = read_features(content)
    if not features:
        raise BadRowError("not a tf.train.Example")
    # A Feature holds a list of bytes (1), of floats (2) or of integers (3).
    lists = [data for number, data in _fields(features.get(key, b"")) if number == 1]
    values = [value for one in lists for _, value in _fields(one)]
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise BadRowError(
            f"text_key={key!r} must name a feature of one bytes value: features are "
            f"{_listed(list(features))}"
        )
    return decode_text(values[0])


def read_features(content: bytes) -> dict[str, bytes]:
    """Reads the features of a serialized `tf.train.Example`.

    Its wire format is `Example {Features features = 1}`, `Features {map<string, Feature> = 1}`.

    Args:
        content: bytes that may be one.

    Returns:
        Each feature's name and still serialized value; nothing where the bytes are something else.
    """
    try:
        if not content.startswith(b"\n"):
            return {}
        entries = [
            dict(_fields(entry)) for _, part in _fields(content) for _, entry in _fields(part)
        ]
        return {entry[1].decode(): entry[2] for entry in entries}
    except (BadRowError, KeyError, AttributeError, TypeError, UnicodeDecodeError):
        return {}


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Splits a message into its fields, without knowing what they mean."""
    try:
        fields = UnknownFieldSet(Empty.FromString(message))
    except (DecodeError, TypeError) as error:
        raise BadRowError(f"not a message ({error})") from error
    return [(field.field_number, field.data) for field in fields]


def _shape(row: object) -> str:
    if isinstance(row, dict):
        return f"keys are {_listed(list(row)) or 'none'}"
    return f"the row is a {type(row).__name__}"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8]))
