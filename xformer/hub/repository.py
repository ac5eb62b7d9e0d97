"""A source that is a repository of the hub, through the hub's client and its cache."""

import os
from pathlib import Path, PurePosixPath

import xformer
from xformer.hub.client import asking_hub
from xformer.hub.source import HubOptions, Source, contained


class RepositorySource(Source):
    """A repository of the hub, at the commit that its first file came from."""

    def __init__(self, repo_id: str, options: HubOptions) -> None:
        """Checks the name; the hub is asked by the first file.

        Args:
            repo_id: The repository's name.
            options: Which revision, and how it is fetched.

        Raises:
            ValueError: if the name is no legal one.
        """
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo_id)
        except ValueError as error:
            raise ValueError(
                f"{repo_id!r} is neither a folder that exists nor a legal name on the hub: {error}"
            ) from error
        self._repo_id = repo_id
        self._options = options
        cache = options.cache_dir
        self._cache = None if cache is None else os.fspath(cache)
        self._settle(options.revision)
        self._offline = options.local_files_only
        self._files: dict[str, Path | None] = {}

    def names(self) -> tuple[str, ...] | None:
        """Asks the hub for the files of the commit.

        Returns:
            Their names inside the subfolder, sorted; None where the hub is not to be asked or
            cannot be reached.
        """
        from huggingface_hub import HfApi

        self.file("config.json")  # settles the commit
        if self._offline:
            return None
        api = HfApi(library_name="xformer", library_version=xformer.__version__)
        prefix = f"{self._options.subfolder}/" if self._options.subfolder else ""

        def listing() -> list[str]:
            return api.list_repo_files(
                self._repo_id, revision=self._revision, token=self._options.token
            )

        try:
            found = asking_hub(listing, self.name)
        except ConnectionError:
            return None
        return tuple(sorted(n.removeprefix(prefix) for n in found if n.startswith(prefix)))

    def _locate(self, name: str) -> Path | None:
        if name not in self._files:
            self._files[name] = self._download(name)
        return self._files[name]

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        def download() -> str:
            return hf_hub_download(
                self._repo_id,
                name,
                subfolder=self._options.subfolder or None,
                revision=self._revision,
                cache_dir=self._cache,
                force_download=self._options.force_download,
                local_files_only=self._options.local_files_only,
                token=self._options.token,
                library_name="xformer",
                library_version=xformer.__version__,
            )

        try:
            path = Path(asking_hub(download, self.name))
        except errors.OfflineModeIsEnabled:
            self._offline = True
            return None
        except ConnectionError:
            if self._is_known_to_lack(name):
                return None
            raise
        except errors.EntryNotFoundError as error:
            response = getattr(error, "response", None)
            if response is not None:
                self._settle(response.headers.get("X-Repo-Commit") or self._revision)
            return None
        # The cache holds <repository>/snapshots/<commit>/<name>.
        snapshot = path.parents[len(PurePosixPath(self._options.subfolder, name).parts) - 1]
        self._settle(snapshot.name)
        return contained(path, snapshot.resolve())

    def _is_known_to_lack(self, name: str) -> bool:
        """Whether the cache remembers that the hub did not have the file."""
        from huggingface_hub import try_to_load_from_cache

        path = str(PurePosixPath(self._options.subfolder, name))
        found = try_to_load_from_cache(self._repo_id, path, self._cache, self._revision)
        return found is not None and not isinstance(found, str)

    def _settle(self, revision: str) -> None:
        """Downloads from here on, and messages, are of this revision.

        All files come from the commit of the first: a branch may move between two.
        """
        self._revision = revision
        self.name = f"{self._repo_id}/{self._options.subfolder}".rstrip("/") + f" at {revision}"

    def _hint(self) -> str:
        if not self._offline:
            return ""
        return (
            " in the cache, and downloads are off: unset local_files_only and HF_HUB_OFFLINE, or "
            "set cache_dir to where it was downloaded"
        )
