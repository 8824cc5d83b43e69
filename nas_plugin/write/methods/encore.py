"""ENCORE: "Lifelong Sequential Knowledge Editing without Model Degradation" (Gupta et al., 2025), section 5."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from nas_plugin.solve.stopping import MostProbable, StoppingRule
from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.priors import covariance_prior


class ENCORE(LayerEditor):
    """Update R K' (lambda C + lambda_n I + S + K K')^-1, with the most-probable early stop."""

    carries: ClassVar[bool] = True

    @classmethod
    def prior_name(cls, hparams: Any) -> str:
        """Return a name; see `LayerEditor.prior_name`."""
        return f"inverse-{hparams.mom2_update_weight!r}-{hparams.update_norm_lambda!r}"

    @classmethod
    def prior(cls, moment: Tensor, hparams: Any) -> Tensor:
        """Return (lambda C + lambda_n I)^-1; see `LayerEditor.prior`."""
        return covariance_prior(moment, hparams.mom2_update_weight, hparams.update_norm_lambda)

    @classmethod
    def stopping_rule(cls, hparams: Any) -> StoppingRule:
        """Return ENCORE's rule; see `LayerEditor.stopping_rule`."""
        return MostProbable(hparams.prob_cutoff, hparams.mpes_exact5)
