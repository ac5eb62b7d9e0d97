"""The middle of a drop-in model: its folder, read and written, and the hub."""

import functools
import operator
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

from xformer import partitioning
from xformer.hub import HubOptions, Source, open_source, push_folder, without_former
from xformer.models.config import CONFIG_FILE, ModelConfig, config_path
from xformer.partitioning import Rules
from xformer.pretrained.arguments import FORMER
from xformer.pretrained.loading import load_params
from xformer.pretrained.names import WeightTable
from xformer.pretrained.parameters import ModelWithParams, Params
from xformer.pretrained.reading import open_weights
from xformer.pretrained.reporting import check_enough, report, report_misread
from xformer.pretrained.saving import save_params


class ModelInFolders(ModelWithParams):
    """A model that is loaded from folders and the hub, and saved.

    Attributes:
        base_model_prefix: Where a model with a head keeps the one without.
        weights: The family's weight names.
    """

    base_model_prefix: ClassVar[str] = ""
    weights: ClassVar[WeightTable]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Source,
        dtype: DTypeLike = jnp.float32,
        *,
        config: ModelConfig | str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        subfolder: str = "",
        from_pt: bool = False,
        trust_remote_code: bool = False,
        input_shape: tuple[int, ...] | None = (1, 1),
        seed: int = 0,
        gradient_checkpointing: bool = False,
        param_dtype: DTypeLike | None = jnp.float32,
        mesh: Mesh | None = None,
        rules: Rules | None = None,
        _do_init: bool = True,
        **overrides: Any,
    ) -> Any:
        """Loads a model from a folder or the hub.

        A checkpoint with a head loads into a model without one and the other way round. Weights
        that are missing are drawn; a warning names them, and those that were not used.

        Args:
            pretrained_model_name_or_path: A folder in the published format, a name on the hub, or
                either opened already.
            dtype: Dtype of the computation.
            config: The architecture, or where to read it, if not from the model's config.json.
            cache_dir: Where hub files are kept.
            ignore_mismatched_sizes: Whether weights of another shape are drawn anew instead of
                being an error.
            force_download: Whether to download again what the cache has.
            local_files_only: Whether to use the cache alone.
            token: Of the hub, where the model needs one.
            revision: Branch, tag or commit of a hub name.
            subfolder: Folder inside a hub name.
            from_pt: Whether to insist on weights in PyTorch's layout. Without it both layouts are
                recognised.
            trust_remote_code: Only False: code of a model folder is never run.
            input_shape: As for the constructor.
            seed: Of weights that are drawn.
            gradient_checkpointing: As for the constructor.
            param_dtype: Dtype of the parameters; None keeps that of the file.
            mesh: Devices to split the parameters over while they are read; no device and no host
                then holds the model as a whole.
            rules: Which logical axes `mesh` splits; the default rules if None.
            _do_init: False returns (model, params); weights that are missing are left out until
                `init_weights` is given the params.
            **overrides: Config fields that replace those of config.json, and settings as for the
                constructor. Arguments of the former
                `from_pretrained` that have no meaning here are accepted at the values that ask
                for nothing.

        Returns:
            The model, or (model, params).

        Raises:
            FileNotFoundError: if there is no such model, or it has no weights.
            ValueError: if a file is malformed or refused, or if shapes differ.
        """
        if trust_remote_code:
            raise ValueError("trust_remote_code must be False: code of a model folder is never run")
        overrides, token = without_former(overrides, token, FORMER)
        settings = {key: overrides.pop(key) for key in cls.module_settings if key in overrides}
        options = HubOptions(
            revision=revision or "main",
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            subfolder=subfolder,
        )
        source = open_source(pretrained_model_name_or_path, options)
        chosen = cls._chosen_config(source, config, overrides, options)
        model = cls(chosen, input_shape, seed, dtype, False, gradient_checkpointing, **settings)
        weights = open_weights(source)
        if from_pt and weights.layout != "published":
            raise ValueError(f"from_pt=True, but {source.name} has no weights in PyTorch's layout")
        placement = model._placement(mesh, rules, _do_init)
        loaded = load_params(
            weights,
            model._shapes,
            cls.weights,
            shardings=placement,
            dtype=param_dtype,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        check_enough(loaded, model._shapes, cls.__name__, source.name)
        report(loaded, cls.__name__, source.name)
        model._read_beside(source)
        if not _do_init:
            return model, loaded.params
        model._is_initialized = True
        params = model.init_weights(model.key, input_shape, loaded.params)
        model.params = params if mesh is None else jax.device_put(params, placement)
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        params: Params | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "10GB",
        token: str | bool | None = None,
        safe_serialization: bool = True,
        repo_id: str | None = None,
    ) -> None:
        """Writes a folder that `from_pretrained` and `transformers` read.

        A folder that does not exist appears whole or not at all. A warning names what
        `transformers` does not know of the model.

        Args:
            save_directory: The folder.
            params: The parameters; the model's own if None.
            push_to_hub: Whether to upload the folder as well.
            max_shard_size: Largest weight file, in bytes or as "5GB"; larger weights are split.
            token: Of the hub.
            safe_serialization: True writes safetensors with PyTorch's names; False writes the
                `flax_model.msgpack` that the Flax classes of `transformers` 4 read.
            repo_id: Name on the hub; that of the folder if None.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if parameters are missing or the size is malformed.
        """
        params = self._complete(self.params if params is None else params)
        for path, leaf in traverse_util.flatten_dict(self._shapes).items():
            given: Any = functools.reduce(operator.getitem, path, params)
            if (found := jnp.shape(given)) != leaf.shape:
                raise ValueError(
                    f"params at {'/'.join(path)} must have shape {leaf.shape}, got {found}"
                )
        architecture = type(self).__name__.removeprefix("Flax")
        config = self._config.published_as(architecture, _common_dtype(params))
        names = save_params(
            Path(save_directory),
            params,
            self.weights,
            max_shard_size=max_shard_size,
            layout="published" if safe_serialization else "flax",
            files={CONFIG_FILE: config.to_json_string().encode(), **self._files_beside()},
        )
        report_misread(config, architecture, save_directory)
        if push_to_hub:
            push_folder(
                save_directory, repo_id or Path(save_directory).name, token=token, files=names
            )

    def push_to_hub(
        self,
        repo_id: str,
        params: Params | None = None,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | bool | None = None,
        max_shard_size: int | str = "5GB",
        create_pr: bool = False,
        revision: str | None = None,
        safe_serialization: bool = True,
    ) -> str:
        """Uploads the model as `save_pretrained` writes it.

        Args:
            repo_id: Name on the hub; the repository is made where there is none.
            params: The parameters; the model's own if None.
            commit_message: Of the upload.
            private: Whether a new repository is private; None takes the account's default.
            token: Of the hub; the stored login if None.
            max_shard_size: As for `save_pretrained`.
            create_pr: Whether to make a pull request.
            revision: Branch to write; "main" if None.
            safe_serialization: As for `save_pretrained`.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ConnectionError: if the hub cannot be reached.
            PermissionError: if the token does not give the right.
            ValueError: if parameters are missing, or the name is not a legal one.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(
                folder,
                params,
                max_shard_size=max_shard_size,
                safe_serialization=safe_serialization,
            )
            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                revision=revision,
            )

    # Inside.

    @classmethod
    def _chosen_config(
        cls,
        source: Source,
        config: ModelConfig | str | os.PathLike[str] | None,
        overrides: dict[str, Any],
        options: HubOptions,
    ) -> ModelConfig:
        """The config that is given, or one that is read, with some fields replaced."""
        if isinstance(config, ModelConfig):
            if overrides:
                raise ValueError(f"set {sorted(overrides)} in the config that is given")
            return config
        path = source.require(CONFIG_FILE) if config is None else config_path(config, options)
        chosen = cls.config_class.from_file(path, **overrides)
        chosen.name_or_path = source.name
        return chosen

    def _read_beside(self, source: Source) -> None:
        """Reads what a class keeps in files of its own, beside config.json."""

    def _files_beside(self) -> dict[str, bytes]:
        """The content of those files, by name."""
        return {}

    def _placement(self, mesh: Mesh | None, rules: Rules | None, do_init: bool) -> Any:
        """Where each parameter goes; without a mesh, parameters handed out stay on the host."""
        if mesh is not None:
            return partitioning.shardings(self._shapes, self._axes, mesh, rules or Rules())
        if do_init:
            return None
        host = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        return jax.tree.map(lambda _: host, self._shapes)


def _common_dtype(params: Params) -> str:
    """The dtype of the parameters; float32 where they have several."""
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    return dtypes.pop() if len(dtypes) == 1 else "float32"
