"""The model card: what it says, and that nothing in it escapes from its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from nas_plugin import EditSession, NASMEMITHparams, __version__, export_edits
from nas_plugin.demo import load_demo
from nas_plugin.demo.world import World
from nas_plugin.share.card import card, public_name
from nas_plugin.share.source import Source, of_session
from tests.promises.hostile import FUZZ
from tests.promises.test_r13_paths import LEADING_OUT
from tests.share.sharing import edited


@pytest.fixture(scope="module")
def source() -> Source:
    return of_session(edited("llama", "AlphaEdit", edits=2))


@pytest.mark.parametrize(("form", "library"), [("full", "transformers"), ("edits", "nas-plugin"), ("lora", "peft")])
def test_what_it_says(source: Source, form: str, library: str, tmp_path: Path) -> None:
    done = export_edits(source, tmp_path / form, form, base="somebody/llama", scores={"efficacy/probability": 97.5})
    read = ModelCard.load(done.folder / "README.md")
    assert read.data.base_model == "somebody/llama" and read.data.library_name == library
    assert {"model-editing", "knowledge-editing", "nas-alphaedit"} <= set(read.data.tags)
    assert getattr(read.data, "license", None) is None
    about = source.about
    assert about.anchor is not None
    for text in (
        "# somebody/llama, edited with NAS-AlphaEdit", about.base, about.weights, about.hparams, f"`{about.edits}`",
        f"| anchor | `{about.anchor:.6g}` |", "| digest of the ledger | `none was kept` |", f"nas-plugin {__version__}",
        "| nullspace_threshold | `0.5` |", "| efficacy/probability | `97.5` |", "No licence is stated here",
        "transformers", "## Loading",
    ):  # fmt: skip
        assert text in read.text, text
    assert "stats_dir" not in read.text and "keep_dir" not in read.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("gpt2-xl", "gpt2-xl"),
        ("/home/me/models/llama", "llama"),
        ("./models/my llama", "base"),
        ("C:\\models\\llama", "llama"),
        ("", "base"),
    ],
)
def test_names_of_bases(name: str, shown: str) -> None:
    assert public_name(name) == shown


def test_a_folder_that_looks_like_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/llama") == "llama"


HOSTILE = st.sampled_from([*LEADING_OUT, "---\nlicense: mit\n---", "`|`", "# x\n", "<script>", "| a | b |", "\u202e"])


@FUZZ
@given(name=HOSTILE | st.text(max_size=30), value=HOSTILE | st.text(max_size=30))
def test_nothing_escapes(source: Source, name: str, value: str) -> None:
    hostile = replace(
        source,
        base=name,
        hparams={name: value, "x": [value]},
        scores={name: 1.0},
        about=replace(source.about, base=value),
    )
    plain = card(replace(source, base="base", hparams={"a": "b", "x": ["b"]}, scores={"a": 1.0}), "edits", "Said.")
    text = card(hostile, "edits", "Said.", [(value, name)])
    assert text.count("\n---\n") == plain.count("\n---\n") and "<script" not in text
    body, wanted = text.split("\n---\n", 1)[1], plain.split("\n---\n", 1)[1]
    # As many lines as ever, and one more row.
    assert len(body.splitlines()) == len(wanted.splitlines()) + 1
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == len([line for line in wanted.splitlines() if line.startswith("#")])
    text.encode()


def test_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model: what stands under "Loading" gives the edited model."""
    model, tok = load_demo(torch.float64)
    hparams = NASMEMITHparams.from_hparams("nas-demo", mom2_n_samples=40, nas_n_pilots=3, v_num_grad_steps=5)
    session = EditSession(model, tok, hparams, progress=False)
    session.edit(World().edits(1)[0].to_request())
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        wanted = session.model(tokens).logits
    for form, near in (("full", 0.0), ("edits", 0.0), ("lora", 1e-9)):
        done = export_edits(session, tmp_path / form, form)
        text = (done.folder / "README.md").read_text(encoding="utf-8")
        code = text.split("```python\n")[1].split("```")[0]
        assert ModelCard(text).data.base_model is None, "the embedded model is on no Hub"
        space = {"folder": str(done.folder)}
        exec(compile(code, form, "exec"), space)
        with torch.no_grad():
            found = space["model"].eval()(tokens).logits
        assert float((found - wanted).abs().max()) <= near
