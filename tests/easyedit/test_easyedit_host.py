"""Loading the host: what it needs, what it may not leave behind, and both import orders."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import pytest
import torch

from nas_plugin.easyedit.hook import arm, disarm
from nas_plugin.easyedit.host import armed_finders, load_host
from nas_plugin.easyedit.host_guard import _accelerator_rng, untouched_process
from nas_plugin.easyedit.host_stubs import missing_packages, stubs
from nas_plugin.easyedit.registry import register
from nas_plugin.errors import HostMissingError, NasPluginError

ABSENT = "nas_plugin_test_absent"


def python(code: str) -> str:
    """Runs code in a fresh interpreter that finds what this one finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_import_nas_plugin_does_nothing() -> None:
    assert (
        python("""
        import logging, os, random, sys
        before = list(sys.meta_path), dict(os.environ), random.getstate(), list(logging.getLogger().handlers)
        import nas_plugin
        after = list(sys.meta_path), dict(os.environ), random.getstate(), list(logging.getLogger().handlers)
        assert before == after
        print(sorted({"torch", "transformers", "easyeditor"} & set(sys.modules)))
    """)
        == "[]"
    )


@pytest.mark.usefixtures("loaded_host")
def test_plugin_first_then_host() -> None:
    assert python("""
        import logging, os, random, sys
        import importlib.util
        finders = list(sys.meta_path)
        from nas_plugin import NASAlphaEditHparams
        from nas_plugin import NASMEMITHparams
        assert "torch" not in sys.modules and "easyeditor" not in sys.modules
        assert len(sys.meta_path) == len(finders) + 1
        assert importlib.util.find_spec("easyeditor") is not None  # a question is not an import
        assert len(sys.meta_path) == len(finders) + 1
        import numpy, torch, transformers.modeling_utils
        names = set(vars(transformers.modeling_utils))
        torch.manual_seed(7)
        def state():
            root = logging.getLogger()
            return (dict(os.environ), random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
                    root.level, list(root.handlers), sys.getrecursionlimit())
        finders = [f for f in sys.meta_path if type(f).__module__ != "nas_plugin.easyedit.host"]
        before = state()
        from easyeditor import BaseEditor
        assert state() == before
        assert sys.meta_path == finders
        assert not [n for n, m in sys.modules.items() if type(m).__module__.startswith("nas_plugin.easyedit")]
        assert "apply_chunking_to_forward" not in set(vars(transformers.modeling_utils)) - names
        from easyeditor import NASAlphaEditHparams as again
        assert again is NASAlphaEditHparams
        import easyeditor
        assert easyeditor.__spec__.loader is easyeditor.__loader__
        assert not type(easyeditor.__loader__).__module__.startswith("nas_plugin")
        table = sys.modules["easyeditor.util.alg_dict"].ALG_DICT
        print(sorted(name for name in table if name.startswith("NAS-")))
    """) == str(sorted(["NAS-MEMIT", "NAS-PRUNE", "NAS-RECT", "NAS-AlphaEdit", "NAS-ENCORE", "NAS-LyapLock"]))


@pytest.mark.usefixtures("loaded_host")
def test_host_first_then_plugin_and_out_again() -> None:
    assert (
        python("""
        import sys
        from nas_plugin.easyedit.host import load_host
        table = load_host().ALG_DICT
        names = list(table)
        import nas_plugin
        assert list(table) == names
        finders = list(sys.meta_path)
        from nas_plugin import NASMEMITHparams
        assert "NAS-MEMIT" in table and sys.meta_path == finders
        nas_plugin.unregister()
        print(list(table) == names and sys.meta_path == finders)
    """)
        == "True"
    )


def test_arm_is_idempotent_and_can_be_undone(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "easyeditor", raising=False)
    before = list(sys.meta_path)
    arm()
    arm()
    assert len(armed_finders()) == 1
    disarm()
    assert sys.meta_path == before


def test_a_missing_host_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.delenv("EASYEDIT_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "easyeditor", None)
    before = list(sys.meta_path)
    for attempt in (load_host, register):
        with pytest.raises(HostMissingError, match=r"pip install --no-deps easyeditor.*EASYEDIT_HOME") as caught:
            attempt()
        assert isinstance(caught.value, ImportError) and isinstance(caught.value, NasPluginError)
    assert sys.meta_path == before


def test_a_wrong_home_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("EASYEDIT_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "easyeditor", raising=False)
    with pytest.raises(HostMissingError, match=tmp_path.name):
        load_host()
    assert armed_finders() == []


@pytest.mark.parametrize(("body", "message"), [("import " + ABSENT, ABSENT), ("raise ImportError('torn')", "torn")])
def test_a_host_that_fails_to_import_is_explained(monkeypatch, tmp_path, body, message) -> None:
    (tmp_path / "easyeditor").mkdir()
    (tmp_path / "easyeditor" / "__init__.py").write_text(body, encoding="utf-8")
    monkeypatch.setenv("EASYEDIT_HOME", str(tmp_path))
    saved = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "easyeditor"}
    for name in saved:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(HostMissingError, match=message):
        load_host()
    sys.modules.update(saved)


def test_stubs_live_only_inside_the_block() -> None:
    before = list(sys.meta_path)
    with stubs([ABSENT]):
        module = importlib.import_module(f"{ABSENT}.part.deeper")
        base, decorate = module.Base, module.decorate

        class Child(base): ...

        @decorate
        def function() -> int:
            return 3

        assert function() == 3
        assert base[int] is base and (base | None) is base and (int | base) is base
        assert issubclass(module.Outer.Inner, object)
        with pytest.raises(ImportError, match=ABSENT):
            Child()
        with pytest.raises(ImportError, match=ABSENT):
            Child(function)
        with pytest.raises(AttributeError):
            module.__version__  # noqa: B018
    assert ABSENT not in sys.modules and sys.meta_path == before
    assert importlib.util.find_spec(ABSENT) is None


def test_installed_packages_are_never_shadowed() -> None:
    yaml = sys.modules.pop("yaml")
    try:
        with stubs(["yaml"]):
            assert importlib.import_module("yaml").__file__ == yaml.__file__
    finally:
        sys.modules["yaml"] = yaml


def test_a_broken_package_counts_as_missing(monkeypatch, tmp_path) -> None:
    (tmp_path / "fairscale").mkdir()
    (tmp_path / "fairscale" / "__init__.py").write_text(
        "import fairscale.part\nraise RuntimeError('ops')", encoding="utf-8"
    )
    (tmp_path / "fairscale" / "part.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "fairscale" in missing_packages()
    assert not [name for name in sys.modules if name.startswith("fairscale")]


@pytest.mark.parametrize(("ready", "expected"), [(True, [("set", "states")]), (False, [("seed", 11)])])
def test_random_state_of_an_accelerator(ready, expected) -> None:
    """Restored where it is running; where it is not, never started: seeds are queued there, and ours comes last."""
    calls: list[tuple[str, object]] = []
    device = SimpleNamespace(
        is_initialized=lambda: ready,
        get_rng_state_all=lambda: "states",
        set_rng_state_all=lambda states: calls.append(("set", states)),
        manual_seed_all=lambda seed: calls.append(("seed", seed)),
    )
    accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: SimpleNamespace(type="chip"))
    restore = _accelerator_rng(SimpleNamespace(accelerator=accelerator, chip=device, initial_seed=lambda: 11))
    assert calls == []
    restore()
    assert calls == expected


def test_the_guard_restores_also_after_an_error(monkeypatch) -> None:
    monkeypatch.setenv("NAS_TEST_KEPT", "1")
    root, handler = logging.getLogger(), logging.NullHandler()

    def state() -> tuple[object, ...]:
        return (
            dict(os.environ),
            random.getstate(),
            torch.get_rng_state().tolist(),
            root.level,
            list(root.handlers),
            list(warnings.filters),
        )

    before = state()
    with pytest.raises(RuntimeError), untouched_process():
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
        del os.environ["NAS_TEST_KEPT"]
        random.seed(42)
        torch.manual_seed(42)
        root.addHandler(handler)
        root.setLevel(1)
        warnings.simplefilter("ignore")
        raise RuntimeError
    assert state() == before
