"""MEMIT: "Mass-Editing Memory in a Transformer" (Meng et al., ICLR 2023), Eq. 14. No memory of earlier edits."""

from __future__ import annotations

from torch import Tensor

from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.priors import covariance_prior


class MEMIT(LayerEditor):
    """Update R K' (lambda C + K K')^-1."""

    def prior(self, moment: Tensor) -> Tensor:
        """Return (lambda C)^-1; see `LayerEditor.prior`."""
        return covariance_prior(moment, self.hparams.mom2_update_weight)
