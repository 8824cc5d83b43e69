"""Pushing, against a Hub that is not there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from nas_plugin import export_edits, push_to_hub
from nas_plugin.errors import HubError
from tests.cli.calling import call
from tests.share.sharing import edited, files
from tests.share.test_kept import kept_session


class Hub:
    """What `HfApi` would have been asked for."""

    asked: list[tuple[str, dict[str, Any]]]
    refuses: Exception | None

    def create_repo(self, repo_id: str, **given: Any) -> Any:
        self.asked.append(("create", {"repo_id": repo_id, **given}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **given: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append(("upload", {**given, "files": files(Path(given["folder_path"]))}))


def refusal(text: str) -> HfHubHTTPError:
    """What the Hub's refusal becomes, without the response of an HTTP library."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.args = (text,)
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.asked, Hub.refuses = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pushed") / "lora"
    export_edits(edited(edits=1), out, "lora")
    return out


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded(hub: type[Hub], folder: Path, private: bool) -> None:
    address = push_to_hub(folder, "somebody/edited", private=private)
    assert address == "https://huggingface.co/somebody/edited"
    (create, made), (upload, sent) = hub.asked
    assert (create, upload) == ("create", "upload")
    assert made == {"repo_id": "somebody/edited", "repo_type": "model", "private": private, "exist_ok": True}
    assert sent["repo_id"] == "somebody/edited" and sent["repo_type"] == "model" and sent["folder_path"] == folder
    assert sent["files"] == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert sent["commit_message"] == "Edited with nas-plugin"


def test_new_repositories_are_private_unless_asked(hub: type[Hub], folder: Path) -> None:
    push_to_hub(folder, "somebody/edited")
    assert hub.asked[0][1]["private"] is True


@pytest.mark.parametrize(
    "error",
    [
        refusal("403: no write access"),
        OSError("no network"),
        ValueError("no token"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_refuses_has_a_name(hub: type[Hub], folder: Path, error: Exception) -> None:
    hub.refuses = error
    before = files(folder)
    with pytest.raises(HubError, match="was not put on the Hub as somebody/edited") as caught:
        push_to_hub(folder, "somebody/edited")
    assert str(error)[:20] in caught.value.message and files(folder) == before


def test_a_folder_that_is_no_export(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"holds no README.md"):
        push_to_hub(tmp_path, "somebody/edited")
    assert hub.asked == []


# The discard port of this machine, where nothing listens.
NOWHERE = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9", token="none")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "../x", ""])
def test_names_that_are_none(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", NOWHERE)
    with pytest.raises(HubError, match="HFValidationError"):
        push_to_hub(folder, name)


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", NOWHERE)
    with pytest.raises(HubError, match="was not put on the Hub"):
        push_to_hub(folder, "somebody/edited")


def test_the_command_pushes_what_it_wrote(hub: type[Hub], tmp_path: Path) -> None:
    from tests.conftest import build_model, build_tokenizer

    kept_session(tmp_path / "kept")
    build_model("gpt2").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    given = ("export", tmp_path / "kept", "--model", tmp_path / "base", "--to", "edits", "--out", tmp_path / "out")
    said = call(*given, "--push", "somebody/edited")
    assert "On the Hub: https://huggingface.co/somebody/edited" in said
    assert hub.asked[1][1]["files"] == {"README.md", "edits.safetensors"} and hub.asked[0][1]["private"] is True
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card, "a path of this machine is nobody else's business"
