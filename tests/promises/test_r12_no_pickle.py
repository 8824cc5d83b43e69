"""R12: the package neither imports nor calls anything that unpickles, and no reader runs what a file holds."""

from __future__ import annotations

import ast
import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nas_plugin
from nas_plugin.anchor import Anchor
from nas_plugin.cli.options import RunOptions
from nas_plugin.editors import kept_prior
from nas_plugin.errors import NasPluginError
from nas_plugin.evaluation.capability.suite import _check_file
from nas_plugin.evaluation.logs import read_run
from nas_plugin.evaluation.records import read_jsonl, read_object
from nas_plugin.evaluation.runner.load import load_hparams
from nas_plugin.evaluation.runner.state import Measured, load_state, save_state
from nas_plugin.evaluation.streams import load_stream
from nas_plugin.hparams import NASMEMITHparams
from nas_plugin.keep.edits import load_edits
from nas_plugin.keep.ledger import Ledger
from nas_plugin.keep.snapshots import read_factors, read_snapshot
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import read_npz
from nas_plugin.locate.texts import texts_of
from nas_plugin.pilots import pilot_requests
from nas_plugin.share.apply import apply_edits
from tests.conftest import build_model
from tests.promises.keeping import kept

SOURCES = sorted(Path(nas_plugin.__file__).parent.rglob("*.py"))
MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "copyreg", "jsonpickle", "pickletools",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
# Attributes of modules, by any name that the modules go by.
CALLS = {
    "torch": {"load"},
    "torch.jit": {"load"},
    "torch.hub": {"load", "load_state_dict_from_url"},
    "yaml": {
        "load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all",
        "Loader", "UnsafeLoader", "FullLoader", "CLoader", "CUnsafeLoader", "CFullLoader",
    },
    "pandas": {"read_pickle"},
}  # fmt: skip
# Methods that unpickle unless they are told not to.
MUST_REFUSE = {"load", "read_array", "open_memmap"}
NUMPY = ("numpy", "numpy.lib", "numpy.lib.format", "numpy.lib.npyio")


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(".")[0] in MODULES:
            # As an argument of `import_module`, or of anything else that leads there.
            yield node.value


def forbidden(source: str) -> list[str]:
    """Name what a source may not hold."""
    tree = ast.parse(source)
    names = names_of(tree)
    found = [name for name in imports(tree) if MODULES & set(name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                found.append(node.func.id)
            module, _, method = full_name(node.func, names).rpartition(".")
            refuses = any(
                word.arg == "allow_pickle" and isinstance(word.value, ast.Constant) and word.value.value is False
                for word in node.keywords
            )
            if module in NUMPY and method in MUST_REFUSE and not refuses:
                found.append(f"{module}.{method}")
            for word in node.keywords:
                if (
                    word.arg in ("allow_pickle", "trust_remote_code")
                    and getattr(word.value, "value", None) is not False
                ):
                    found.append(str(word.arg))
        if isinstance(node, ast.Attribute | ast.Name):
            module, _, method = full_name(node, names).rpartition(".")
            if method in CALLS.get(module, ()):
                found.append(f"{module}.{method}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_a_source_has_nothing_that_unpickles(path: Path) -> None:
    assert forbidden(path.read_text(encoding="utf-8")) == []


BAD = r"""
import pickle | import dill as d | from joblib import load | import shelve, os | from torch.utils import pickle
from marshal import loads | import importlib; importlib.import_module('pickle') | import torch; torch.load('x')
import torch as t; t.load('x') | from torch import load; load('x') | from torch import load as l; l('x')
import torch.jit; torch.jit.load('x') | import numpy as np; np.load('x') | import numpy; numpy.load('x', allow_pickle=True)
import numpy as np; np.load('x', allow_pickle=y) | from numpy.lib import format as f; f.read_array(x)
import yaml; yaml.load(x, yaml.SafeLoader) | import yaml; yaml.unsafe_load(x) | from yaml import FullLoader; FullLoader(x)
import yaml; l = yaml.Loader | eval('1') | exec('1') | __import__('os') | m.from_pretrained(x, trust_remote_code=True)
"""


@pytest.mark.parametrize("source", [source for line in BAD.strip().splitlines() for source in line.split(" | ")])
def test_what_unpickles_is_found(source: str) -> None:
    assert forbidden(source)


def test_what_does_not_is_not() -> None:
    assert not forbidden(
        "import json, re, torch, yaml\nimport numpy as np\njson.load(x)\nmodel.eval()\nre.compile('x')\nmanager.load(x)\n"
        "np.load(x, allow_pickle=False)\nyaml.safe_load(x)\nclass A(yaml.SafeLoader): pass\n"
    )
    assert len(SOURCES) > 100


def test_no_pickle_ships() -> None:
    suffixes = {path.suffix for path in SOURCES[0].parent.rglob("*")}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz", ".ckpt"}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


def forms(payload: Payload) -> dict[str, bytes]:
    """The payload in every guise that some library takes for data."""
    plain = pickle.dumps(payload)
    array, archive, saved, legacy = (io.BytesIO() for _ in range(4))
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    np.savez(
        archive, **{"mom2.mom2": np.array([[payload]], dtype=object), "mom2.count": np.array(payload, dtype=object)}
    )
    torch.save({"mom2.mom2": payload}, saved)
    torch.save({"mom2.mom2": payload}, legacy, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        for name in ("mom2.mom2.npy", "mom2.count.npy"):
            file.writestr(name, plain)
    yaml = f"!!python/object/apply:os.mkdir [{payload.path}]"
    return {
        "pickle": plain,
        "old pickle": pickle.dumps(payload, protocol=0),
        "array of objects": array.getvalue(),
        "archive of objects": archive.getvalue(),
        "archive of pickles": zipped.getvalue(),
        "torch": saved.getvalue(),
        "torch, before 1.6": legacy.getvalue(),
        "yaml tag": f"{yaml}\n".encode(),
        "yaml tag as a value": f"alg_name: NAS-MEMIT\nlayers: {yaml}\n".encode(),
        "yaml tag as a key": f"? {yaml}\n: 1\n".encode(),
    }


def no_matrix() -> torch.Tensor:
    return torch.zeros(0)


def setting(path: Path) -> dict[str, Any]:
    return RunOptions(set=[f"v_lr={path.read_bytes().decode('latin-1')}"]).settings


def ended_state(path: Path) -> None:
    """The tensors of a run's state beside a sound manifest."""
    given = path.read_bytes()
    session = kept(None)
    session.prepare()
    save_state(session, path.with_suffix(".json"))
    path.write_bytes(given)
    load_state(session, path.with_suffix(".json"))


def ended_ledger(path: Path) -> Ledger:
    path.write_bytes(path.read_bytes() + b"\n")
    return Ledger(path)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "hyperparameters": ("x.yaml", NASMEMITHparams.from_hparams),
    "hyperparameters of any editor": ("x.yaml", lambda path: load_hparams(path, {})),
    "setting": ("x", lambda path: load_hparams("NAS-MEMIT/nas-demo", setting(path))),
    "anchor": ("x.json", Anchor.load),
    "pilots": ("x.json", lambda path: pilot_requests(str(path))),
    "texts": ("x.json", lambda path: list(texts_of(path))),
    "texts by line": ("x.jsonl", lambda path: list(texts_of(path))),
    "stream": ("x.json", load_stream),
    "stream by line": ("x.jsonl", load_stream),
    "task": ("x.json", lambda path: _check_file(path, {"sentence": "text"}, 1)),
    "object": ("x.json", read_object),
    "run": ("run.json", lambda path: read_run(path.parent)),
    "contexts": ("contexts.json", lambda path: Measured.load(path.parent)),
    "lines": ("x.jsonl", lambda path: path.write_bytes(path.read_bytes() + b"\n") and read_jsonl(path)),
    "second moments": ("x.safetensors", SecondMoments.load),
    "prior": ("x.safetensors", lambda path: kept_prior(path, 3, no_matrix)),
    "state": ("state.safetensors", ended_state),
    "ledger": ("ledger.jsonl", ended_ledger),
    "snapshot": ("manifest.json", lambda path: read_snapshot(path.parent)),
    "factors": ("x.safetensors", lambda path: read_factors(path, hashlib.sha256(path.read_bytes()).hexdigest())),
    "edits": ("x.safetensors", lambda path: load_edits(build_model("gpt2"), path)),
    "adapter": ("adapter_model.safetensors", lambda path: apply_edits(build_model("gpt2"), path)),
    "arrays": ("x.npz", read_npz),
}


@pytest.mark.parametrize("form", forms(Payload(Path("x"))))
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_refuses_and_runs_nothing(tmp_path: Path, reader: str, form: str) -> None:
    name, read = READERS[reader]
    made = tmp_path / "made"
    (tmp_path / name).write_bytes(forms(Payload(made))[form])
    with pytest.raises(NasPluginError):
        read(tmp_path / name)
    assert not made.exists()


def test_the_payloads_would_run(tmp_path: Path) -> None:
    for number, form in enumerate(("pickle", "old pickle")):
        made = tmp_path / str(number)
        pickle.loads(forms(Payload(made))[form])  # noqa: S301
        assert made.is_dir()
    made = tmp_path / "array"
    np.load(io.BytesIO(forms(Payload(made))["array of objects"]), allow_pickle=True)
    assert made.is_dir()
