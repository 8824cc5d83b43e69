"""Putting an export on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from nas_plugin.errors import HubError
from nas_plugin.share.card import CARD_FILE


def push_to_hub(folder: str | Path, repo: str, *, private: bool = True, message: str | None = None) -> str:
    """Upload an exported folder; the repository is made if it does not exist.

    Whoever uploads has logged in with `hf auth login`, or set HF_TOKEN.

    Args:
        folder: What `export_edits` wrote.
        repo: Name of the repository, as "somebody/llama3-8b-edited".
        private: Make a new repository private. An existing one stays as it is.
        message: Message of the commit.

    Returns:
        Address of the repository.

    Raises:
        HubError: The folder is no export, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    # Of the HTTP library, which differs from release to release: a refused connection is one of them.
    of_library = (kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))
    failures: tuple[type[Exception], ...] = (
        *of_library, HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError, ValueError,
    )  # fmt: skip
    folder = Path(folder)
    if not (folder / CARD_FILE).is_file():
        raise HubError(f"{folder} holds no {CARD_FILE}; give a folder that export_edits (nas-edit export) wrote.")
    api = HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message=message or "Edited with nas-plugin",
        )
    except failures as error:
        raise HubError(
            f"{folder} was not put on the Hub as {repo:.200}: {type(error).__name__}: {str(error):.300} Check the name "
            "(OWNER/NAME), the network and the token (hf auth login)."
        ) from error
    return str(made)
