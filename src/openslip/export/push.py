"""Upload an exported folder to a model repository of the Hugging Face hub, in one commit."""

import re
import warnings
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from openslip.errors import UserError, described, first_line

NAME = re.compile(r"[\w.-]+/[\w.-]+")
LOGIN = "hf auth login"


def check_repository(repository: str) -> None:
    """Refuse a name that is no USER/NAME, and a machine without a token, before anything is exported.

    Raises:
        UserError: the name has another form, or no token is stored.
    """
    if not NAME.fullmatch(repository):
        raise UserError(f"--push {repository}: expected USER/NAME, the name of a repository on the hub")
    if get_token() is None:
        raise UserError(f"--push {repository}: no token of the hub is stored: {LOGIN}")


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Create a model repository if there is none of this name, upload all files in one commit; return its address.

    Args:
        folder: exported folder, which the caller has checked.
        repository: USER/NAME or ORGANISATION/NAME.
        private: whether a new repository is private; an existing one stays what it is.

    Raises:
        UserError: there is no token or no connection, or the token may not write to this repository.
    """
    check_repository(repository)
    api, files = HfApi(), sorted(path for path in folder.iterdir() if path.is_file())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the hub, about metadata that the card does not have
            api.create_repo(repository, private=private, exist_ok=True)
            api.create_commit(
                repository,
                [CommitOperationAdd(path.name, path) for path in files],
                commit_message="Upload a model exported by OpenSLIP",
            )
    except HfHubHTTPError as error:
        reason = refusal(error.response.status_code, repository, error)
        raise UserError(f"--push {repository}: {reason}; the export stays in {folder}") from error
    except HFValidationError as error:
        raise UserError(
            f"--push {repository}: the hub allows no such name ({first_line(error)}); the export stays in {folder}"
        ) from error
    except Exception as error:  # of the network library, which is another one in each version of huggingface_hub
        raise UserError(
            f"--push {repository}: the upload to {api.endpoint} failed ({described(error)[:200]}): check the network, "
            f"and repeat the command with --force; the export stays in {folder}"
        ) from error
    return f"{api.endpoint}/{repository}"


def refusal(status: int, repository: str, error: Exception) -> str:
    """Say why the hub refused a request, and the command that helps."""
    owner = repository.partition("/")[0]
    if status == 401:
        return f"the hub does not accept the stored token: {LOGIN}"
    if status in (403, 404):
        return f"your token may not write to repositories of {owner}: hf auth whoami lists your names, or {LOGIN}"
    return f"the hub answered {status} ({first_line(error)[:200]}): repeat the command with --force"
