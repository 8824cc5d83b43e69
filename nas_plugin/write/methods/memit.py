"""MEMIT: "Mass-Editing Memory in a Transformer" (Meng et al., ICLR 2023), Eq. 14. No memory of earlier edits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.priors import covariance_prior


class MEMIT(LayerEditor):
    """Update R K' (lambda C + K K')^-1."""

    @classmethod
    def prior_name(cls, hparams: Any) -> str:
        """Return a name; see `LayerEditor.prior_name`."""
        return f"inverse-{hparams.mom2_update_weight!r}"

    @classmethod
    def prior(cls, moment: Tensor, hparams: Any) -> Tensor:
        """Return (lambda C)^-1; see `LayerEditor.prior`."""
        return covariance_prior(moment, hparams.mom2_update_weight)
