"""R27: edits saved alone load exactly, save again to the same bytes, and never go into a model that they do not belong to.

`artefacts/edits-1.safetensors` is what `recorded()` saved in 0.1.0. Every later release has to read it; it is not made again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_plugin import NASMEMITHparams, __version__, load_edits
from nas_plugin.errors import EditsError
from nas_plugin.keep.digests import weights_digest
from nas_plugin.keep.edits import LoadedEdits, read_edits, write_edits
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests
from tests.promises import oracle
from tests.promises.watching import digests
from tests.support import METHOD_NAMES, tiny_session

ARTEFACT = Path(__file__).parent / "artefacts" / "edits-1.safetensors"
RECORDED = "804319144301b6dc0fdecfd517a65f45b2bbc9d5d7c6849e6acec085fa0000fa"
# -log p of the three targets: unedited, and with the recorded edits. The model is too small to learn them, not to be changed.
UNEDITED, EDITED = (26.0180, 31.6390, 30.3579), (26.0044, 31.1712, 30.4325)
# Transposed storage; the usual one; and a method that serves the model a view of its masters.
CASES = [
    ("gpt2", "MEMIT", torch.float32), ("gpt2", "AlphaEdit", torch.bfloat16), ("llama", "PRUNE", torch.float32),
    ("llama", "MEMIT", torch.bfloat16), ("qwen2", "PRUNE", torch.bfloat16),
]  # fmt: skip


def edited(family: str = "gpt2", method: str = "MEMIT", dtype: torch.dtype = torch.float32) -> EditSession:
    session = tiny_session(family, method, dtype=dtype, nas_n_pilots=2, v_num_grad_steps=2)
    for request in build_requests(3):
        session.edit(request)
    return session


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(40).reshape(2, 20)).logits
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "edits.safetensors"
    edited().save_edits(path)
    return path


@pytest.mark.parametrize(("family", "method", "dtype"), CASES)
def test_saved_and_loaded_is_the_same_model(family: str, method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    session = edited(family, method, dtype)
    first, second = tmp_path / "new" / "first.safetensors", tmp_path / "second.safetensors"
    session.save_edits(first)
    model = build_model(family, dtype)
    base, places = logits(model), {name: value.data_ptr() for name, value in model.named_parameters()}
    about = load_edits(model, first)
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == places
    assert digests(model) == digests(session.model)
    assert float((logits(model) - logits(session.model)).abs().max()) == 0 < float((logits(model) - base).abs().max())

    parameters = {name: model.get_parameter(name) for name in about.parameters}
    write_edits(second, parameters, about)
    assert second.read_bytes() == first.read_bytes()
    assert weights_digest(parameters) == about.weights == session.weights_digest()
    assert about == LoadedEdits(
        tuple(sorted(session.parameter_names)), __version__, session.fingerprint, method, True, session.hparams.digest(), 3,
        session.anchor_value, session.weights_digest(),
    )  # fmt: skip


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_without_an_anchor(method: str, tmp_path: Path) -> None:
    session = tiny_session("gpt2", method, use_nas=False, v_num_grad_steps=2)
    session.edit(build_requests(2))
    session.save_edits(tmp_path / "edits.safetensors")
    model = build_model("gpt2")
    about = load_edits(model, tmp_path / "edits.safetensors")
    assert digests(model) == digests(session.model)
    assert about.method == method and not about.use_nas and about.anchor is None and about.edits == 2


def test_the_bytes_do_not_depend_on_the_process(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom nas_plugin.keep.edits import read_edits, write_edits\n"
        "about, tensors = read_edits(sys.argv[1])\nwrite_edits(sys.argv[2], dict(reversed(tensors.items())), about)\n"
    )
    for seed in "12":
        again = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(saved), str(again)], env=environment, check=True)
        assert again.read_bytes() == saved.read_bytes()


def test_going_back_and_going_on(tmp_path: Path) -> None:
    path = tmp_path / "edits.safetensors"
    session = edited()
    session.rollback()
    session.save_edits(path)
    assert read_edits(path)[0].edits == 2
    session.revert()
    session.save_edits(path)
    model = build_model("gpt2")
    before = digests(model)
    assert load_edits(model, path).edits == 0 and digests(model) == before


def test_weights_that_are_not_the_sessions_are_not_saved(tmp_path: Path) -> None:
    session = edited()
    with torch.no_grad():
        session.em.weight(0).mul_(2)
    with pytest.raises(EditsError, match="changed by something else"):
        session.save_edits(tmp_path / "edits.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_session_notices_edits_that_were_loaded_under_it(saved: Path) -> None:
    session = tiny_session("gpt2", "MEMIT")
    load_edits(session.model, saved)
    assert session.state_of_weights() == "foreign"


def unchanged_by(model: nn.Module, path: Path, says: str, *, check: bool = True) -> None:
    """Loading is refused with these words, and nothing has changed."""
    before = digests(model)
    with pytest.raises(EditsError, match=says) as caught:
        load_edits(model, path, check=check)
    assert digests(model) == before and str(path) in caught.value.message


def test_another_base_is_refused(saved: Path) -> None:
    other = build_model("gpt2", seed=1)
    unchanged_by(other, saved, "fingerprint")
    with pytest.raises(EditsError) as caught:
        load_edits(other, saved)
    for fingerprint in (weights_fingerprint(other), weights_fingerprint(build_model("gpt2"))):
        assert fingerprint in caught.value.message
    about = load_edits(other, saved, check=False)
    assert weights_digest({name: other.get_parameter(name) for name in about.parameters}) == about.weights


def test_an_edited_model_is_refused(saved: Path) -> None:
    model = build_model("gpt2")
    load_edits(model, saved)
    unchanged_by(model, saved, "edited already")
    load_edits(model, saved, check=False)


def other_family(_: Any) -> Any:
    return build_model("llama")


def narrower(model: Any) -> Any:
    module = model.transformer.h[1].mlp.c_proj
    module.weight = nn.Parameter(module.weight.detach()[:, :-1].clone())
    return model


def half(model: Any) -> Any:
    return model.to(torch.bfloat16)


def one_object(model: Any) -> Any:
    model.transformer.h[2].mlp.c_proj.weight = model.transformer.h[1].mlp.c_proj.weight
    return model


def one_place(model: Any) -> Any:
    model.transformer.h[2].mlp.c_proj.weight = nn.Parameter(model.transformer.h[1].mlp.c_proj.weight.detach())
    return model


def offloaded(model: Any) -> Any:
    model.transformer.h[1].mlp.c_proj.to("meta")
    return model


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_family, "LlamaForCausalLM has no parameter 'transformer"),
        (narrower, r"\(48, 32\), in this model torch.float32 \(48, 31\)"),
        (half, "torch.float32 .* in this model torch.bfloat16"),
        (one_object, r"h.1.mlp.c_proj.weight is shared with \['transformer.h.2.mlp.c_proj.weight'\]"),
        (one_place, r"h.1.mlp.c_proj.weight is shared with \['transformer.h.2.mlp.c_proj.weight'\]"),
        (offloaded, "meta device"),
    ],
)
def test_a_model_that_the_parameters_do_not_fit(
    spoil: Callable[[Any], Any], says: str, check: bool, saved: Path
) -> None:
    unchanged_by(spoil(build_model("gpt2")), saved, says, check=check)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float, saved: Path, tmp_path: Path) -> None:
    about, tensors = read_edits(saved)
    name = about.parameters[-1]
    tensors[name][3, 4] = value
    write_edits(tmp_path / "x", tensors, replace(about, weights=weights_digest(tensors)))
    unchanged_by(build_model("gpt2"), tmp_path / "x", "NaN or infinity", check=False)


def recorded() -> EditSession:
    """The session of which the artefact was saved."""
    session = EditSession(
        oracle.oracle_model(),
        oracle.oracle_tokenizer(),
        NASMEMITHparams(model_name="oracle", **oracle.NUMBERS),
        contexts=oracle.CONTEXTS,
        moments=oracle.oracle_moments(),
        anchor=6.0,
        progress=False,
    )
    for request in oracle.REQUESTS:
        session.edit(request)
    return session


def losses(model: Any) -> tuple[float, ...]:
    """-log p of each target."""
    tok, found = oracle.oracle_tokenizer(), []
    for request in oracle.REQUESTS:
        prompt, target = (tok(text)["input_ids"] for text in (request["prompt"], f" {request['target_new']}"))
        with torch.no_grad():
            scores = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(-float(scores[range(len(target)), target].sum()))
    return tuple(found)


def test_what_the_first_release_saved_is_read() -> None:
    model = oracle.oracle_model()
    before = digests(model)
    assert losses(model) == pytest.approx(UNEDITED, abs=0.01)
    about = load_edits(model, ARTEFACT)
    assert (about.version, about.method, about.use_nas, about.edits, about.anchor) == ("0.1.0", "MEMIT", True, 3, 6.0)
    assert weights_digest({name: model.get_parameter(name) for name in about.parameters}) == about.weights == RECORDED
    changed = {name for name, digest in digests(model).items() if digest != before[name]}
    assert changed == set(about.parameters) == {f"transformer.h.{i}.mlp.c_proj.weight" for i in oracle.LAYERS}
    assert losses(model) == pytest.approx(EDITED, abs=0.01)


def test_the_artefact_is_what_its_session_makes() -> None:
    """But for the last bits, which other versions of torch may round otherwise."""
    about, tensors = read_edits(ARTEFACT)
    session = recorded()
    assert session.fingerprint == about.base and ARTEFACT.stat().st_size < 40_000
    for name, parameter in session.weights.stored_parameters().items():
        assert torch.allclose(parameter, tensors[name], rtol=1e-3, atol=1e-4)
