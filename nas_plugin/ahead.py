"""Measuring ahead of the first edit what a session would measure at it, and saying what is there already.

A session with the same hyperparameters then reads the files and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_plugin.anchoring import KeptAnchor, anchor_for
from nas_plugin.editors import make_editors, prior_path
from nas_plugin.errors import AnchorError, EditedModelError, StatisticsError
from nas_plugin.foundation import contexts_for
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.stored import moments_for, moments_path, statistics_folder
from nas_plugin.progress import progress_bar
from nas_plugin.write import METHODS

if TYPE_CHECKING:
    from nas_plugin.session import EditSession


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a second moment, in two numbers.

    Attributes:
        largest: Largest eigenvalue (unit: squared activation).
        smallest: Smallest; rounding may make it 0 or less where text is too little.
    """

    largest: float
    smallest: float

    @property
    def condition(self) -> float:
        """Largest over smallest; infinite for a matrix that is singular to rounding."""
        return self.largest / self.smallest if self.smallest > 0 else float("inf")


@dataclass(frozen=True)
class KeptStatistics:
    """Second moments on disk.

    Attributes:
        moments: The second moments, with their provenance.
        path: Their file; None where `.npz` files of ROME, MEMIT or EasyEdit are used.
        priors: Layer -> file of the factorised prior.
        measured: Whether they were measured just now; False if they were there.
        spectra: Layer -> spectrum; empty where it was not asked for.
    """

    moments: SecondMoments
    path: Path | None
    priors: Mapping[int, Path]
    measured: bool
    spectra: Mapping[int, Spectrum]


def statistics_ahead(session: EditSession, *, spectrum: bool | None = None) -> KeptStatistics:
    """Measure the second moments and factorise the priors that edits will need, or find them there.

    Args:
        session: A session on the unedited model; nothing else of it is prepared.
        spectrum: Compute the extreme eigenvalues too, minutes a layer for a width of 14,336 on a CPU. By default only of what
            was measured just now.

    Returns:
        What is on disk now.

    Raises:
        StatisticsError: There is no folder to keep them in, or what is there is damaged or of another model.
        EditedModelError: The model was edited.
    """
    hparams, em = session.hparams, session.em
    if hparams.stats_dir is None:
        raise StatisticsError(
            "stats_dir is null, so there is no folder to keep statistics in; name one in the hyperparameters, or with --set "
            "stats_dir=FOLDER."
        )
    _check_unedited(session, measuring=True)
    path = moments_path(em, hparams, session.fingerprint)
    folder = statistics_folder(em, hparams, session.fingerprint)
    there = path.exists()
    moments = moments_for(
        em, session.locator, hparams, session.fingerprint, progress=session.progress, group=session.group
    )
    measured = not there and path.exists()
    name = METHODS[hparams.method].prior_name(hparams)
    priors = {layer: prior_path(folder, layer, name, moments.matrices[layer]) for layer in em.layers}
    with progress_bar("priors", len(priors), session.progress) as bar:
        for layer in em.layers:
            make_editors(
                hparams, moments.matrices, {layer: session.weights.base[layer]}, folder, keep=session.group.main
            )
            bar.advance(bar.task_ids[0])
    wanted = measured if spectrum is None else spectrum
    spectra = _spectra(session, moments.matrices) if wanted else {}
    return KeptStatistics(moments, path if path.exists() else None, priors, measured, spectra)


def anchor_ahead(session: EditSession) -> KeptAnchor:
    """Measure the anchor that edits will need, or find it there; second moments are not needed for it.

    Args:
        session: A session on the unedited model; nothing else of it is prepared.

    Returns:
        The anchor.

    Raises:
        AnchorError: Norm anchoring is off, or the file there is damaged or of another model, layer or method.
        EditedModelError: The model was edited.
    """
    hparams, given = session.hparams, session.given
    if not hparams.use_nas:
        raise AnchorError(
            "use_nas is false: this editor writes values as solved and has no anchor. Set use_nas to true."
        )
    _check_unedited(session, measuring=given.anchor is None)
    em, locator = session.em, session.locator
    contexts = contexts_for(em, locator, hparams, given, session.group)
    return anchor_for(
        em,
        locator,
        hparams,
        session.fingerprint,
        contexts,
        given,
        edited=session.edited,
        progress=session.progress,
        group=session.group,
    )


def _check_unedited(session: EditSession, measuring: bool) -> None:
    session.check_unedited()
    if session.edited and measuring:
        raise EditedModelError(
            "this model has been edited already; statistics and anchor are measured on the unedited one, before the first edit."
        )


def _spectra(session: EditSession, matrices: Mapping[int, Tensor]) -> dict[int, Spectrum]:
    found = {}
    with progress_bar("eigenvalues", len(session.em.layers), session.progress) as bar:
        for layer in session.em.layers:
            matrix = matrices[layer].to(session.em.weight(layer).device, torch.float64)
            values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
            found[layer] = Spectrum(float(values[-1]), float(values[0]))
            bar.advance(bar.task_ids[0])
    return found
