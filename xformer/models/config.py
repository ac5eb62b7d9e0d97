"""What the configs of all families share: the documented calls around an architecture's fields.

A family's config is a dataclass of its architecture; this base gives it the call defaults, the
file format (`config.json`), aliases and checks. Values are checked at construction and again when
a model is built, so a field may be assigned in between, as the documented examples do.
"""

import dataclasses
import functools
import json
import logging
import os
import typing
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from xformer.field_types import conform
from xformer.files import read_object, write_atomic
from xformer.hub import HubOptions, open_source
from xformer.layers.heads import Head, SequenceClassification, TokenClassification
from xformer.models.field_checks import FieldChecks
from xformer.models.published_fields import (
    CARRIED,
    CARRIED_NAMES,
    NEUTRAL,
    UNWRITTEN,
    carry,
    check_labels,
    check_published,
    relabelled,
    some,
)

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 4 * 2**20

_CALL = {"configurable": False}  # a call's default, not the architecture's: gin does not bind it
_EXTENSION = "extension"

T = TypeVar("T")
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, unsafe_hash=True)
class ModelConfig(FieldChecks):
    """Base of the families' configs.

    Two configs are equal if they describe the same architecture; the number of labels, which is
    the width of a classifier, is part of it.

    Attributes:
        output_attentions: Whether the drop-in classes return attention probabilities by default.
        output_hidden_states: Whether they return all hidden states by default.
        return_dict: Whether they return structs rather than tuples by default.
        carried: Fields of a published config.json that no computation depends on, by name.
        name_or_path: Where the config was read.
        model_type: The family's published name.
        attribute_map: Documented names of fields beside their own.
        unpublished: Classes of the family, without "Flax", that `transformers` has not.
        longer_rows: What helps rows that outgrow the table of positions; "" without a table.
    """

    output_attentions: bool = field(default=False, compare=False, repr=False, metadata=_CALL)
    output_hidden_states: bool = field(default=False, compare=False, repr=False, metadata=_CALL)
    return_dict: bool = field(default=True, compare=False, repr=False, metadata=_CALL)
    carried: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, metadata=_CALL)
    name_or_path: str = field(default="", compare=False, repr=False, metadata=_CALL)

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[Mapping[str, str]] = {}
    unpublished: ClassVar[tuple[str, ...]] = ()
    longer_rows: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        self.carried = deepcopy(self.carried)  # not shared with the config it was copied from
        self.validate()

    def validate(self) -> None:
        """Checks the fields' types; a family goes on with their ranges.

        Raises:
            TypeError: naming a field of the wrong type.
            ValueError: naming the field to change.
        """
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in _conformed(type(self), values).items():
            object.__setattr__(self, name, value)
        check_labels(self.carried)

    def __getattr__(self, name: str) -> Any:
        """Finds a field by another documented name, or a carried one."""
        if name in type(self).attribute_map:
            return getattr(self, type(self).attribute_map[name])
        if name == "num_labels":
            return len(self.id2label)
        if name in CARRIED:
            carried, default = self.__dict__.get("carried", {}), CARRIED[name]
            if isinstance(default, dict):  # the config's own, for it may be changed in place
                return carried.setdefault(name, dict(default))
            return carried.get(name, default)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns a field under any of its documented names; `validate` judges it."""
        name = type(self).attribute_map.get(name, name)
        if name in type(self).__dataclass_fields__:
            object.__setattr__(self, name, value)
        elif name in CARRIED_NAMES:
            if name != "num_labels" or value != self.num_labels:  # else the labels keep their names
                self.carried.update(carry(name, value))
        else:
            raise AttributeError(
                f"{type(self).__name__} has no field {name!r}; it has {sorted(_names(self))}"
            )

    @property
    def use_return_dict(self) -> bool:
        """Another documented name of `return_dict`."""
        return self.return_dict

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """A config from the fields of a config.json.

        Args:
            config_dict: The fields. Unknown ones are named in a warning and left out.
            return_unused_kwargs: Whether to return (config, overrides that are no fields).
            **overrides: Fields that replace those of the file.

        Returns:
            The config.

        Raises:
            TypeError: if a field has the wrong type.
            ValueError: if a field is out of range, is not supported, asks for code to be run, or
                if the file describes another family.
        """
        check_published(config_dict)
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"{cls.__name__} needs model_type {cls.model_type!r}, got {found!r:.80}; "
                "AutoConfig chooses the class by it"
            )
        names = _names(cls)
        unused = {key: value for key, value in overrides.items() if key not in names}
        if unused and not return_unused_kwargs:
            raise ValueError(
                f"{cls.__name__} has no field {sorted(unused)}; it has {sorted(names)}"
            )
        overrides = {key: value for key, value in overrides.items() if key in names}
        values = {**relabelled(config_dict, overrides), **overrides}
        known = {key: value for key, value in values.items() if key in names}
        unknown = values.keys() - known.keys() - UNWRITTEN - NEUTRAL.keys()
        if unknown:
            _logger.warning("%s has no fields %s: they are left out", cls.__name__, some(unknown))
        config = cls(**known)
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        subfolder: str = "",
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Any:
        """Reads the config of a folder or a hub name.

        Args:
            pretrained_model_name_or_path: A folder with a config.json, the file itself, or a name
                on the hub.
            cache_dir: Where hub files are kept.
            force_download: Whether to download again what the cache has.
            local_files_only: Whether to use the cache alone.
            token: Of the hub, where the model needs one.
            revision: Branch, tag or commit of a hub name.
            subfolder: Folder inside a hub name.
            return_unused_kwargs: Whether to return (config, overrides that are no fields).
            **overrides: Fields that replace those of the file.

        Returns:
            The config.

        Raises:
            FileNotFoundError: if there is no config.json.
            ValueError: as `from_dict`, or if the file is no JSON object; it names the file.
        """
        options = HubOptions(
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
        )
        path = config_path(pretrained_model_name_or_path, options)
        result = cls.from_file(path, return_unused_kwargs=return_unused_kwargs, **overrides)
        config = result[0] if return_unused_kwargs else result
        config.name_or_path = str(pretrained_model_name_or_path)
        return result

    @classmethod
    def from_file(cls, path: Path, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Reads a config.json.

        Args:
            path: The file.
            return_unused_kwargs: Whether to return (config, overrides that are no fields).
            **overrides: Fields that replace those of the file.

        Returns:
            As `from_dict`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as `from_dict`, or if a field has the wrong type; it names the file.
        """
        found = read_object(path, MAX_CONFIG_BYTES)
        try:
            return cls.from_dict(found, return_unused_kwargs=return_unused_kwargs, **overrides)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {str(error):.1000}") from error

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> "ModelConfig":
        """Reads a config from a JSON file.

        Args:
            json_file: The file.

        Returns:
            The config.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as `from_dict`.
        """
        return cls.from_file(Path(json_file))

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, with `model_type`, as JSON values.

        Extensions of the published architecture (`extension`) are left out at their defaults, for
        other readers of the file do not know them; so are labels.

        Returns:
            The fields.
        """
        plain = {one.name: one.default for one in fields(self) if _EXTENSION in one.metadata}
        plain |= {name: CARRIED[name] for name in ("id2label", "label2id")}
        values = self.carried | {name: getattr(self, name) for name in _declared(type(self))}
        kept = {k: v for k, v in values.items() if k not in plain or v != plain[k]}
        return {**kept, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that a file needs: the architecture, and what differs from the defaults."""
        defaults = {one.name: one.default for one in fields(ModelConfig)}
        missing = object()
        return {k: v for k, v in self.to_dict().items() if defaults.get(k, missing) != v}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The content of a config.json.

        Args:
            use_diff: Whether common fields at their defaults are left out.

        Returns:
            JSON, ending in a line break.
        """
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes the config into a file, in one step.

        Args:
            json_file_path: The file.
            use_diff: Whether common fields at their defaults are left out.
        """
        write_atomic(Path(json_file_path), self.to_json_string(use_diff))

    def check_length(self, length: int) -> None:
        """Refuses rows that a table of positions is too short for.

        Args:
            length: Number of tokens of a row.

        Raises:
            ValueError: if there are more tokens than positions.
        """
        if self.longer_rows and length > self.max_position_embeddings:
            raise ValueError(
                f"{length} tokens are more than {type(self).__name__}.max_position_embeddings="
                f"{self.max_position_embeddings}; shorten them, or {self.longer_rows}"
            )

    def published_as(self, architecture: str, dtype: str) -> "ModelConfig":
        """A copy for the config.json of saved weights.

        Args:
            architecture: Name of the model's class, without "Flax".
            dtype: Dtype of the weights.

        Returns:
            The copy, whose file names both. That of a question answerer has two labels, the start
            and the end: other readers of the file take its width from them.
        """
        copy: Any = dataclasses.replace(self)
        kept = {key: value for key, value in copy.carried.items() if key != "dtype"}
        copy.carried = {**kept, "architectures": [architecture], "torch_dtype": dtype}
        if architecture.endswith("ForQuestionAnswering"):
            copy.num_labels = 2
        return copy

    def misread(self, architecture: str) -> tuple[str, ...]:
        """What makes saved weights another model to `transformers`, for it does not know it.

        Args:
            architecture: Name of the model's class, without "Flax".

        Returns:
            Fields with their values, and the class where there is none of its name; nothing where
            `transformers` reads the same model.
        """
        unknown = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if _EXTENSION in one.metadata
            and getattr(self, one.name) != one.default
            and all(getattr(self, k) == v for k, v in one.metadata[_EXTENSION].items())
        ]
        if architecture in self.unpublished:
            unknown.append(f"the class {architecture}")
        return tuple(unknown)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes config.json into a folder, which is made where it does not exist.

        Args:
            save_directory: The folder.

        Raises:
            TypeError: if a field has the wrong type.
            ValueError: if a field is out of range.
        """
        self.validate()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_FILE)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Assigns several fields.

        Args:
            config_dict: Values by name.

        Raises:
            AttributeError: if there is no such field.
        """
        for key, value in config_dict.items():
            setattr(self, key, value)


def config_path(name_or_path: str | os.PathLike[str], options: HubOptions | None = None) -> Path:
    """The config.json of a model.

    Args:
        name_or_path: A folder, the file itself, or a name on the hub.
        options: How a hub name is read.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(name_or_path)
    return path if path.is_file() else open_source(name_or_path, options).require(CONFIG_FILE)


def extension(*, default: Any, where: Mapping[str, Any] | None = None) -> Any:
    """A field of a config that extends the published architecture.

    Args:
        default: The value with which the architecture is the published one.
        where: Values of other fields without which this one has no effect.

    Returns:
        The dataclass field. It is left out of config.json at its default.
    """
    return field(default=default, metadata={_EXTENSION: where or {}})


def labelled(config: ModelConfig, head: Head) -> ModelConfig:
    """The config of an architecture with a head: the head's labels are the config's.

    Args:
        config: The architecture.
        head: What its hidden states are turned into.

    Returns:
        A copy with `id2label`, `label2id` and `problem_type` of the head; the config itself for a
        head without labels.
    """
    if not isinstance(head, SequenceClassification | TokenClassification):
        return config
    copy = dataclasses.replace(config)
    copy.id2label = dict(enumerate(head.labels))  # and label2id
    if isinstance(head, SequenceClassification):
        copy.problem_type = head.problem_type
    return copy


@typing.dataclass_transform(field_specifiers=(field, extension))
def model_config(cls: type[T]) -> type[T]:
    """Makes a dataclass of a family's config, as `@dataclass(unsafe_hash=True)` does.

    Its constructor also takes the common documented fields and the aliases of `attribute_map`.

    Args:
        cls: A subclass of `ModelConfig` with annotated fields.

    Returns:
        The class.

    Raises:
        TypeError: when a config is made, naming a field of the wrong type.
        ValueError: when a config is made, naming a field that is out of range, or if the
            `model_type` is another family's.
    """
    cls = dataclass(unsafe_hash=True)(cls)
    plain, same_fields, hash_of_fields = cls.__init__, cls.__eq__, cls.__hash__

    def __eq__(self: Any, other: object) -> bool:
        equal = same_fields(self, other)
        return equal if equal is not True else self.num_labels == other.num_labels  # type: ignore[attr-defined]

    def __hash__(self: Any) -> int:
        return hash((hash_of_fields(self), self.num_labels))

    @functools.wraps(plain)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        aliases = type(self).attribute_map
        named = {aliases.get(key, key): value for key, value in named.items()}
        if named.pop("model_type", cls.model_type) != cls.model_type:  # type: ignore[attr-defined]
            raise ValueError(f"{cls.__name__} has its own model_type; AutoConfig knows others")
        named.pop("transformers_version", None)
        common = (CARRIED_NAMES & named.keys()) - {*_declared(cls)}  # type: ignore[arg-type]
        extra = relabelled({key: named.pop(key) for key in sorted(common)}, {})
        plain(self, *values, **named)
        for key, value in extra.items():
            setattr(self, key, value)

    cls.__init__ = __init__  # type: ignore[method-assign]
    cls.__eq__, cls.__hash__ = __eq__, __hash__  # type: ignore[method-assign]
    return cls


def _conformed(cls: type[ModelConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields, checked against their annotations; a whole number is taken for a float."""
    hints, checked = typing.get_type_hints(cls), {}
    for name, value in values.items():
        if isinstance(value, np.generic):
            value = value.item()
        if hints[name] is float and isinstance(value, float):
            checked[name] = value  # NaN too: the check of the range says more about it
            continue
        try:
            checked[name] = conform(value, hints[name])
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.{name} {error}") from None
    return checked


def _declared(config: type[ModelConfig]) -> list[str]:
    """The fields that a file has, without the aliases and the common ones."""
    return [one.name for one in fields(config) if one.name not in ("carried", "name_or_path")]


def _names(config: ModelConfig | type[ModelConfig]) -> set[str]:
    """Every name under which a field can be given."""
    cls = config if isinstance(config, type) else type(config)
    return {*_declared(cls), *cls.attribute_map, *CARRIED_NAMES}
