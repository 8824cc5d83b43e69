"""AlphaEdit: "Null-Space Constrained Knowledge Editing" (Fang et al., ICLR 2025), Eq. 12, in its symmetric form."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.priors import null_space_prior


class AlphaEdit(LayerEditor):
    """Update R K' P ((K K' + S) P + L2 I)^-1, S over all earlier keys, P onto directions the text hardly uses."""

    carries: ClassVar[bool] = True

    @classmethod
    def prior_name(cls, hparams: Any) -> str:
        """Return a name; see `LayerEditor.prior_name`."""
        return f"null-space-{hparams.nullspace_threshold!r}-{hparams.L2!r}"

    @classmethod
    def prior(cls, moment: Tensor, hparams: Any) -> Tensor:
        """Return P / L2; see `LayerEditor.prior`."""
        return null_space_prior(moment, hparams.nullspace_threshold, hparams.L2)
