"""Upload of a trained model to the Hugging Face Hub."""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from balora.errors import BALoraError


def push_trained(
    trainer: Any,
    *,
    commit_message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
) -> Any:
    """Export the trainer's model and upload the export; only balora could read the run directory itself.

    Args:
        trainer: A trainer of balora, in the main process.
        commit_message: Message of the commit.
        blocking: Whether to wait for the upload.
        token: Token of the hub; default the one that is logged in.
        revision: Branch to commit to; default ``main``.
        private: Whether a new repository is private; None means ``args.hub_private_repo``, and private if that is None too.

    Returns:
        The hub's description of the commit, or a Future of it if not ``blocking``.

    Raises:
        BALoraError: The method has no form that plain peft or transformers reads, or the hub refused or was not reached.
    """
    # The public function, because `exporting` is above this package. It is imported when it is needed.
    import balora

    args = trainer.args
    repository = args.hub_model_id or Path(args.output_dir or ".").resolve().name
    if private is None:
        private = args.hub_private_repo if args.hub_private_repo is not None else True
    adapter = trainer.method is not None and trainer.method.form == "lora"
    # The directory is deleted when the upload has ended; an upload in the background outlives this function.
    temporary = tempfile.TemporaryDirectory(prefix="balora-push-")
    in_background = False
    try:
        folder = Path(temporary.name) / "export"
        balora.export(
            trainer.model,
            to="lora" if adapter else "merged",
            output=folder,
            tokenizer=trainer.processing_class,
            initial=trainer.teacher,
        )
        api = HfApi(token=token or args.hub_token)
        repository = str(api.create_repo(repository, private=private, exist_ok=True).repo_id)
        upload: Any = api.upload_folder  # two overloads, by the value of run_as_future
        found = upload(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            run_as_future=not blocking,
        )
        if not blocking:
            in_background = True
            found.add_done_callback(lambda _: temporary.cleanup())
        return found
    except (OSError, HfHubHTTPError, ValueError) as error:
        if isinstance(error, BALoraError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BALoraError(
            f"The model could not be uploaded to {repository}: {reason} "
            "It is still in memory: save it with trainer.save_model, log in with `hf auth login`, and call push_to_hub again."
        ) from error
    finally:
        if not in_background:
            temporary.cleanup()
