"""`balora export --push`: upload an export with its model card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from balora.data.files.hub import looks_local, unreachable
from balora.errors import BALoraError
from balora.files import read_json


def check_upload(repository: str, api: Any = None) -> str:
    """Check before an export that its upload can work: the name, the connection and the login; return the user's name.

    Args:
        repository: Name on the hub, such as ``name/shop-lora``.
        api: `huggingface_hub.HfApi`, or an object with its methods.

    Raises:
        BALoraError: The name is not valid, the hub cannot be reached, or nobody is logged in.
    """
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BALoraError(f"--push {repository!r} is no name of a repository on the hub: {reason}.") from error
    try:
        return str((api or _api()).whoami()["name"])
    except Exception as error:  # the hub's client raises many kinds of errors
        if unreachable(error):
            raise BALoraError(
                "--push: the hub cannot be reached, so nothing was exported. Check the connection, or leave --push out and "
                f"upload the folder later with `hf upload {repository} FOLDER`."
            ) from error
        reason = "" if isinstance(error, LocalTokenNotFoundError) else f" ({_short(error)})"
        raise BALoraError(
            f"--push: you are not logged in to the hub{reason}, so nothing was exported. Log in with `hf auth login`."
        ) from error


def upload(folder: Path, repository: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder as one commit, into a repository that is made if it does not exist; return a sentence.

    Args:
        folder: Folder of an export.
        repository: Name on the hub.
        public: Whether a new repository is public. One that exists keeps its visibility.
        api: `huggingface_hub.HfApi`, or an object with its methods.

    Raises:
        BALoraError: The hub refused; the export stays in its folder.
    """
    api = api or _api()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=made.repo_id, folder_path=str(folder), repo_type="model", commit_message="Exported by balora"
        )
        private = bool(api.repo_info(made.repo_id, repo_type="model").private)
    except Exception as error:
        raise BALoraError(
            f"The export is in {folder}, and its upload to {repository} failed ({_short(error)}). Try again with "
            f"`hf upload {repository} {folder}`."
        ) from error
    visibility = "private" if private else "public"
    kept = "" if private != public else f" It existed already and stays {visibility}."
    return f"Uploaded {folder} to {made} ({visibility}).{kept}"


def local_base(folder: Path) -> str | None:
    """Return a sentence if a LoRA names its base as a local folder, which nobody else has; None otherwise."""
    path = folder / "adapter_config.json"
    base = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    if not base or not looks_local(str(base)):
        return None
    return (
        f"Note: the LoRA names its base as the folder {base}, which others do not have. Set base_model_name_or_path in "
        f"{path.name} to a hub id before others use it, or export with --to merged."
    )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120].rstrip(".")
