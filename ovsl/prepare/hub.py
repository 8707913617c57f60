"""Converted datasets in a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ovsl.data.sources import one_line
from ovsl.errors import InputError

TOKEN_REMEDY = "set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens), or run `hf auth login`"


def check_push(repo: str) -> None:
    """Find out before the work whether its result could be pushed.

    Args:
        repo: `owner/name`.

    Raises:
        InputError: There is no token, or the name is none of a repository.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"'{repo}' cannot be a repository ({one_line(error)}): write OWNER/NAME.") from error
    if repo.count("/") != 1:
        raise InputError(f"'{repo}' names no repository of yours: write OWNER/NAME.")
    if get_token() is None:
        raise InputError(f"There is no token to write to '{repo}' of the Hub: {TOKEN_REMEDY}.")


def push(folder: Path, repo: str, private: bool = True) -> str:
    """Upload a folder as one commit, so that the repository has all of it or nothing.

    Parquet files of the repository that are not in the folder are removed.

    Args:
        folder: Made by `ovsl prepare`.
        repo: `owner/name`; made if it does not exist.
        private: Whether a repository that is made is private.

    Returns:
        Address of the commit.

    Raises:
        InputError: The Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # httpx, or httpx2 from 2.0 on

    check_push(repo)
    api = HfApi(library_name="ovsl")
    local = sorted(file for file in folder.iterdir() if file.is_file())
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset")
        names = {file.name for file in local}
        stale = [name for name in there if name.endswith(".parquet") and name not in names]
        # `upload_folder` makes several commits, between which a reader would find a part of the data.
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(file.name, file) for file in local),
                *(CommitOperationDelete(name) for name in stale),
            ],
            repo_type="dataset",
            commit_message="Parquet files made by ovsl prepare",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = TOKEN_REMEDY if status in (401, 403) else "try again; what was uploaded is not sent twice"
        raise InputError(f"The Hub refuses to take '{folder}' as '{repo}' ({one_line(error)}): {remedy}.") from error
    except (HTTPError, ConnectionError) as error:
        raise InputError(f"The Hub does not answer ({one_line(error)}): check the network and HF_ENDPOINT.") from error
    return str(commit.commit_url)
