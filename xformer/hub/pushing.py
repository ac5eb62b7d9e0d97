"""Uploading a folder to the hub."""

import os
from collections.abc import Sequence
from pathlib import Path

import xformer
from xformer.hub.client import asking_hub


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str = "Upload model",
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    files: Sequence[str] | None = None,
) -> str:
    """Uploads the files of a folder as one commit, and makes the repository where there is none.

    Args:
        folder: What is uploaded, subfolders included.
        repo_id: The repository's name on the hub.
        commit_message: The commit's title.
        private: Whether a new repository is private; None takes the account's default.
        token: Gives the right to write; None takes the stored login.
        create_pr: Whether the commit becomes a pull request.
        revision: The branch that is written, "main" where it is None.
        files: Names of the files that are uploaded; all of the folder's where it is None.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: if the name is no legal one.
        FileNotFoundError: if there is no such folder, or no such branch.
        PermissionError: if the token does not give the right.
        ConnectionError: if the hub cannot be reached.
    """  # noqa: DOC502
    from huggingface_hub import HfApi

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(folder)}")
    api = HfApi(token=token, library_name="xformer", library_version=xformer.__version__)

    def push() -> str:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=os.fspath(folder),
            commit_message=commit_message,
            create_pr=create_pr,
            revision=revision,
            allow_patterns=None if files is None else list(files),
        )
        return commit.pr_url or commit.commit_url

    return asking_hub(push, f"{repo_id} at {revision or 'main'}")
