"""Editors of EasyEdit in a run, driven through its `BaseEditor`.

What a method returns decides how it is measured: a model whose weights it changed like ours, anything else one prompt at a time
(see `RowByRow`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed

from nas_plugin.easyedit.host import load_host
from nas_plugin.easyedit.preloaded import Preloaded
from nas_plugin.easyedit.prepare import wheel_device, working_device
from nas_plugin.errors import HparamsError, RunError
from nas_plugin.evaluation.cases import Case
from nas_plugin.evaluation.runner.entrants import HOSTS
from nas_plugin.evaluation.runner.rows import RowByRow
from nas_plugin.evaluation.runner.writers import entry
from nas_plugin.model.fingerprint import weights_fingerprint
from nas_plugin.parallel import ALONE
from nas_plugin.request import EditRequest

# EasyEdit's own seed, and the sides on which it pads.
_SEED = 42
_PADS_RIGHT = frozenset({"ROME"})
# These leave the weights as they are and put something of their own beside them.
_BESIDE = frozenset({"GRACE", "MELO", "WISE"})


class HostWriter:
    """An editor of EasyEdit.

    Attributes:
        model: What is measured.
        tok: Its tokenizer; its padding side is set as EasyEdit sets it.
        hparams: None: hidden states are followed for our own editors only.
        resumable: False: EasyEdit has no state that could be saved.
        group: A process by itself.
        anchor: None.
    """

    hparams = None
    resumable = False
    group = ALONE
    anchor = None

    def __init__(
        self, model: Any, tok: Any, method: str, file: Path, overrides: Mapping[str, Any], unrelated: Sequence[str]
    ) -> None:
        """Take what the editor is to be made of; it is made by `prepare`.

        Args:
            model: An unedited model.
            tok: Its tokenizer.
            method: A key of `HOSTS`.
            file: EasyEdit's hyperparameter file.
            overrides: Fields that replace those of the file.
            unrelated: Prompts that no edit is about, which WISE trains on.
        """
        self.model, self.tok = model, tok
        self._method, self._file, self._overrides = method, file.resolve(), overrides
        self._unrelated = list(unrelated)
        self._fingerprint = weights_fingerprint(model)
        self._folder = Path()
        self._editor: Any = None
        self._batched = False
        self._norms: dict[str, float] = {}
        self._written = 0

    def describe(self) -> dict[str, Any]:
        """Return the fields of `run.json` about method, hyperparameters and model."""
        hparams = asdict(self._settings())
        digest = hashlib.sha256(json.dumps(hparams, sort_keys=True).encode()).hexdigest()
        return {
            "label": self._method,
            "method": self._method,
            "use_nas": False,
            "model": str(getattr(self.model.config, "_name_or_path", "")),
            "hparams": hparams,
            "hparams_digest": digest,
            "fingerprint": self._fingerprint,
        }

    def prepare(self, folder: Path, resume: bool) -> None:
        """Make EasyEdit's editor.

        Args:
            folder: Where EasyEdit may write its log.
            resume: Of no effect: a run of EasyEdit's cannot be gone on with.
        """
        host: Any = load_host()
        hparams = self._settings()
        # A loaded model answers with its family's name, which is what EasyEdit looks for in a model's path.
        hparams.model_name = Preloaded(self.model, self.tok, name=str(self.model.config.model_type))
        # WISE starts afresh with every edit unless it is told so.
        hparams.sequential_edit = True
        self._folder = folder
        self.tok.padding_side = "right" if self._method in _PADS_RIGHT else "left"
        self._batched = host.BatchEditor.is_batchable_method(HOSTS[self._method][0])
        set_seed(_SEED)
        with self._contained():
            self._editor = host.BaseEditor.from_hparams(hparams)
        parts = [] if self._method in _BESIDE else _edited(hparams)
        self._norms = {
            name: float(parameter.detach().norm())
            for name, parameter in self.model.named_parameters()
            if parameter.dim() > 1 and any(part in name for part in parts)
        }

    def check(self, cases: Sequence[Case]) -> dict[str, str]:
        """Refuse nothing: what EasyEdit cannot take, it refuses itself."""
        return {}

    def write(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Write one step: at once if the method can, else one request after another.

        Args:
            cases: Its cases.

        Returns:
            Their log entries. EasyEdit tells neither losses nor norms of values.
        """
        requests = [self._request(request, case.true_target) for case in cases for request in case.requests]
        started = time.perf_counter()
        with self._contained():
            for group in [requests] if self._batched else [[request] for request in requests]:
                self._apply(group)
        share = (time.perf_counter() - started) / len(cases)
        return [entry(case, None, share) for case in cases]

    def norms(self) -> dict[str, Any]:
        """Return |W| / |W0| per layer and in total, nothing for a method that leaves the weights as they are."""
        if not self._norms:
            return {"layers": {}, "total": None}
        squares: dict[str, list[float]] = {}
        for name, parameter in self.model.named_parameters():
            if name in self._norms:
                number = re.search(r"\d+", name)
                sums = squares.setdefault(number.group() if number else name, [0.0, 0.0])
                sums[0] += float(parameter.detach().norm()) ** 2
                sums[1] += self._norms[name] ** 2
        now, base = (sum(sums[i] for sums in squares.values()) for i in (0, 1))
        layers = {layer: (after / before) ** 0.5 for layer, (after, before) in squares.items()}
        return {"layers": layers, "total": (now / base) ** 0.5}

    def save(self, manifest: Path) -> None:
        """Refuse; see `resumable`."""
        raise RunError(f"the state of EasyEdit's {self._method} cannot be saved.")

    def load(self, manifest: Path) -> None:
        """Refuse; see `resumable`."""
        raise RunError(f"the state of EasyEdit's {self._method} cannot be loaded.")

    def _settings(self) -> Any:
        """Load the hyperparameters with EasyEdit's class, for a device that is there."""
        host = load_host()
        name, class_name = HOSTS[self._method]
        if name not in host.ALG_DICT:
            raise RunError(f"the installed EasyEdit has no {self._method}.")
        find_device = wheel_device if host.is_wheel else working_device
        # Before the file is read: where EasyEdit cannot work at all, that is the reason to give.
        find_device(None)
        hparams = getattr(host.module, class_name).from_hparams(str(self._file))
        for key, value in self._overrides.items():
            if not hasattr(hparams, key):
                raise HparamsError(
                    f"{self._file}: {self._method} has no setting {key!r}; it has {', '.join(vars(hparams))}."
                )
            setattr(hparams, key, value)
        hparams.device = find_device(hparams.device)
        return hparams

    def _apply(self, requests: list[dict[str, Any]]) -> None:
        editor = self._editor
        if self._batched:
            editor.hparams.batch_size = len(requests)
            # UltraEdit drops what does not fill a part of a batch.
            if len(requests) % getattr(editor.hparams, "batch_size_once", 1):
                editor.hparams.batch_size_once = 1
        edited, _ = editor.apply_algo(
            editor.model,
            editor.tok,
            requests,
            editor.hparams,
            copy=False,
            return_orig_weights=True,
            keep_original_weight=False,
            train_ds=None,
        )
        if isinstance(edited, PreTrainedModel):
            self.model = editor.model = edited
        else:
            self.model = RowByRow(edited, editor.model_name.model)
            if self._method == "MELO":
                # It wraps the model anew unless it is given what it returned.
                editor.model = edited

    def _request(self, request: EditRequest, truth: str | None) -> dict[str, Any]:
        self._written += 1
        flat: dict[str, Any] = {
            "prompt": request.prompt,
            "subject": request.subject,
            "target_new": request.target,
            "ground_truth": truth,
            "portability": {},
            "locality": {},
        }
        if self._unrelated:
            flat["loc_prompt"] = self._unrelated[self._written % len(self._unrelated)]
        elif self._method == "WISE":
            raise RunError("WISE trains on prompts that no edit is about; give a stream that is longer than the edits.")
        return flat

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Let EasyEdit write its files into the run folder, and its dozens of lines an edit nowhere."""
        before = Path.cwd()
        self._folder.mkdir(parents=True, exist_ok=True)
        os.chdir(self._folder)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                yield
        finally:
            os.chdir(before)


def _edited(hparams: Any) -> list[str]:
    """List what the names of the parameters that a method changes have in common."""
    if hasattr(hparams, "rewrite_module_tmp"):
        return [f"{hparams.rewrite_module_tmp.format(layer)}." for layer in hparams.layers]
    return [re.sub(r"\[(\d+)\]", r".\1", name) for name in getattr(hparams, "inner_params", [])]
