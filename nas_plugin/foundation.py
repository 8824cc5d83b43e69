"""What is measured on the unedited model before the first edit: contexts, second moments, anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nas_plugin.anchor import Anchor
from nas_plugin.anchoring import anchor_for
from nas_plugin.errors import EditedModelError
from nas_plugin.locate.contexts import ContextTemplates, generate_contexts
from nas_plugin.locate.moments import SecondMoments
from nas_plugin.locate.sequences import Locator
from nas_plugin.locate.stored import moments_for
from nas_plugin.model.editable import EditableModel
from nas_plugin.parallel import ALONE, Group
from nas_plugin.request import EditRequest, as_requests


@dataclass(frozen=True)
class Given:
    """What the caller brings instead of having it measured; None where nothing was brought.

    Attributes:
        contexts: Context templates.
        moments: Second moments.
        anchor: The anchor.
        pilots: Facts to measure the anchor with.
    """

    contexts: ContextTemplates | None = None
    moments: SecondMoments | None = None
    anchor: Anchor | None = None
    pilots: Sequence[EditRequest] | None = None

    @classmethod
    def of(
        cls,
        contexts: ContextTemplates | Sequence[Sequence[str]] | None,
        moments: SecondMoments | Mapping[int, Tensor] | None,
        anchor: Anchor | float | None,
        pilots: Any,
    ) -> Given:
        """Take it in the forms that callers have it in.

        Args:
            contexts: Templates, or groups of them.
            moments: Second moments, or layer -> matrix `(d_in, d_in)`.
            anchor: An anchor, or tau.
            pilots: Requests or records.

        Returns:
            The same.
        """
        return cls(
            contexts
            if contexts is None or isinstance(contexts, ContextTemplates)
            else ContextTemplates(tuple(tuple(group) for group in contexts)),
            moments if moments is None or isinstance(moments, SecondMoments) else SecondMoments(dict(moments)),
            Anchor(float(anchor)) if isinstance(anchor, int | float) else anchor,
            None if pilots is None else as_requests(pilots),
        )

    def completed(self, contexts: ContextTemplates, anchor: Anchor | None, moments: SecondMoments | None) -> Given:
        """Add what an earlier session measured, where nothing is given.

        Args:
            contexts: Its context templates.
            anchor: Its anchor.
            moments: Its second moments; None reads or measures them.

        Returns:
            Both together.
        """
        return replace(
            self,
            contexts=self.contexts or contexts,
            anchor=self.anchor or anchor,
            moments=self.moments or moments,
        )


@dataclass(frozen=True)
class Foundation:
    """Measurements on the unedited model; part of a session's state.

    Attributes:
        contexts: Context templates.
        moments: Second moments of the edited layers.
        anchor: The anchor; None without NAS.
    """

    contexts: ContextTemplates
    moments: SecondMoments
    anchor: Anchor | None


def lay_foundation(
    em: EditableModel,
    locator: Locator,
    hparams: Any,
    fingerprint: str,
    given: Given,
    *,
    edited: bool,
    progress: bool,
    group: Group = ALONE,
) -> Foundation:
    """Take what is given, read what is stored, measure the rest.

    Args:
        em: The model, unedited.
        locator: Builds token sequences.
        hparams: Hyperparameters.
        fingerprint: Fingerprint of the model's weights.
        given: What need not be measured.
        edited: The model is known to be edited: nothing may be measured.
        progress: Show progress bars.
        group: Processes that share the work.

    Returns:
        The foundation.

    Raises:
        EditedModelError: Something would have to be measured on an edited model.
    """
    if edited:
        _refuse_measuring(given, hparams.use_nas)
    if given.moments is not None:
        # On an edited model the fingerprint is not the one the statistics were taken with.
        given.moments.check(
            em, given.moments.provenance.get("model", fingerprint) if edited else fingerprint, locator.tok
        )
    contexts = contexts_for(em, locator, hparams, given, group)
    moments = given.moments
    if moments is None:
        moments = moments_for(em, locator, hparams, fingerprint, progress=progress, group=group)
    if not hparams.use_nas:
        return Foundation(contexts, moments, None)
    kept = anchor_for(em, locator, hparams, fingerprint, contexts, given, edited=edited, progress=progress, group=group)
    return Foundation(contexts, moments, kept.anchor)


def contexts_for(
    em: EditableModel, locator: Locator, hparams: Any, given: Given, group: Group = ALONE
) -> ContextTemplates:
    """Take the context templates that are given, or let the model write them; see `lay_foundation`."""
    if given.contexts is not None:
        return given.contexts
    written = generate_contexts(em, locator.tok, hparams.context_seed)
    return ContextTemplates.from_values(group.said_by_main(written.to_values()), "the first process")


def _refuse_measuring(given: Given, use_nas: bool) -> None:
    needed = {"contexts": given.contexts, "moments": given.moments} | ({"anchor": given.anchor} if use_nas else {})
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise EditedModelError(
            f"this model has been edited already and {', '.join(missing)} would have to be measured on it; restore the "
            "unedited model first, or pass them from the session that measured them (session.foundation)."
        )
