"""The anchor of a session: the one that is given, the stored one, or a new one; measured with the method's own solver."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_plugin.anchor import Anchor, measure_anchor
from nas_plugin.errors import AnchorError
from nas_plugin.hparams import NASMEMITHparams, shipped_names
from nas_plugin.locate.contexts import ContextTemplates
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.stored import statistics_folder
from nas_plugin.model.editable import EditableModel
from nas_plugin.parallel import ALONE, Group
from nas_plugin.pilots import pilot_requests
from nas_plugin.request import EditRequest
from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.stopping import BatchMeanLoss
from nas_plugin.solve.target import TargetSolver
from nas_plugin.write import METHODS

if TYPE_CHECKING:
    from nas_plugin.foundation import Given

logger = logging.getLogger(__name__)

_OFFICIAL = "official"
_OWN_SETTINGS_ARE_MEMITS = ("MEMIT", "PRUNE", "RECT")


@dataclass(frozen=True)
class KeptAnchor:
    """The anchor of a model and method.

    Attributes:
        anchor: The anchor, with its provenance.
        path: Its file; None if it is kept nowhere.
        measured: Whether it was measured just now; False if it was there.
    """

    anchor: Anchor
    path: Path | None
    measured: bool


def anchor_for(
    em: EditableModel,
    locator: Locator,
    hparams: Any,
    fingerprint: str,
    contexts: ContextTemplates,
    given: Given,
    *,
    edited: bool,
    progress: bool,
    group: Group = ALONE,
) -> KeptAnchor:
    """Take the anchor that is given, read the stored one, or measure and store it.

    Args:
        em: The model, unedited.
        locator: Builds token sequences.
        hparams: Hyperparameters.
        fingerprint: Fingerprint of the model's weights.
        contexts: Context templates.
        given: What need not be measured.
        edited: The model is known to be edited: a given anchor is not compared with it.
        progress: Show a progress bar.
        group: Processes that share the pilots.

    Returns:
        The anchor.
    """
    solver = _anchor_solver(em, locator, contexts, hparams)
    provenance = {"model": fingerprint, "hparams": _anchor_digest(solver, hparams), "contexts": solver.contexts.digest}
    if given.anchor is None:
        return _stored_or_measured(solver, given.pilots, hparams, provenance, progress, group)
    if not edited:
        given.anchor.check(fingerprint, em.value_layer, provenance["hparams"])
    return KeptAnchor(given.anchor, None, False)


def anchor_digest(em: EditableModel, locator: Locator, hparams: Any) -> str:
    """Digest of all that decides the anchor's value, apart from the model and its contexts; files of anchors have it.

    Args:
        em: The model; nothing is computed.
        locator: Of its tokenizer.
        hparams: Hyperparameters.

    Returns:
        The digest, as hex.
    """
    return _anchor_digest(_anchor_solver(em, locator, ContextTemplates.bare(), hparams), hparams)


def _stored_or_measured(
    solver: TargetSolver,
    pilots: Sequence[EditRequest] | None,
    hparams: Any,
    provenance: dict[str, str],
    progress: bool,
    group: Group,
) -> KeptAnchor:
    path = _anchor_path(solver, hparams, provenance, pilots)
    if path is not None and group.all(path.exists()):
        anchor = Anchor.load(path)
        anchor.check(provenance["model"], solver.em.value_layer, provenance["hparams"])
        logger.info("anchor %.4f read from %s", anchor.value, path)
        return KeptAnchor(anchor, path, False)
    anchor = measure_anchor(
        solver,
        pilots if pilots is not None else pilot_requests(hparams.nas_pilots),
        mode=hparams.nas_mode,
        count=hparams.nas_n_pilots,
        seed=hparams.nas_seed,
        provenance=provenance,
        progress=progress,
        group=group,
    )
    if path is not None and group.main:
        anchor.save(path)
    group.wait()
    return KeptAnchor(anchor, path, True)


def _anchor_path(
    solver: TargetSolver, hparams: Any, provenance: dict[str, str], pilots: Sequence[EditRequest] | None
) -> Path | None:
    if hparams.nas_anchor_file is not None:
        return Path(hparams.nas_anchor_file)
    if hparams.stats_dir is None or pilots is not None:
        return None
    folder = statistics_folder(solver.em, hparams, provenance["model"])
    return (
        folder / f"anchor-layer{solver.em.value_layer}-{provenance['hparams'][:12]}-{provenance['contexts'][:8]}.json"
    )


def _anchor_digest(solver: TargetSolver, hparams: Any) -> str:
    """Digest of all that decides the anchor's value, apart from the model."""
    decides = {
        "solver": asdict(solver.settings),
        "rule": repr(solver.rule),
        "mode": hparams.nas_mode,
        "pilots": [str(hparams.nas_pilots), hparams.nas_n_pilots, hparams.nas_seed],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _anchor_solver(em: EditableModel, locator: Locator, contexts: ContextTemplates, hparams: Any) -> TargetSolver:
    if hparams.nas_mode != _OFFICIAL:
        rule = METHODS[hparams.method].stopping_rule(hparams)
        return TargetSolver(em, locator, contexts, SolverSettings.from_hparams(hparams), rule)
    # The released code solves pilots on bare prompts, with MEMIT's numbers whatever the editor, stopping a batch as one.
    return TargetSolver(em, locator, ContextTemplates.bare(), _memit_settings(hparams), BatchMeanLoss())


def _memit_settings(hparams: Any) -> SolverSettings:
    if hparams.method in _OWN_SETTINGS_ARE_MEMITS:
        return SolverSettings.from_hparams(hparams)
    for name in shipped_names():
        if name.startswith("NAS-MEMIT/"):
            memit = NASMEMITHparams.from_hparams(name)
            if memit.model_name == str(hparams.model_name):
                return SolverSettings.from_hparams(memit)
    raise AnchorError(
        f"nas_mode 'official' measures the anchor with MEMIT's settings for the same model, and no shipped NAS-MEMIT file names "
        f"model {str(hparams.model_name)!r}; use nas_mode 'paper', or a model_name that a shipped file has."
    )
