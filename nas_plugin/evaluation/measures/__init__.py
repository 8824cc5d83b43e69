"""What is measured on a model: metrics of cases by their exact protocols, perplexity, drift of hidden states."""

from nas_plugin.evaluation.measures.drift import DriftProbe
from nas_plugin.evaluation.measures.measuring import base_outputs, measure
from nas_plugin.evaluation.measures.perplexity import perplexity
from nas_plugin.evaluation.measures.protocols import (
    PROTOCOLS,
    TEACHER_FORCED,
    WRITTEN,
    protocols_of,
    template_of,
)
from nas_plugin.evaluation.measures.summary import summarise_cases

__all__ = [
    "PROTOCOLS",
    "TEACHER_FORCED",
    "WRITTEN",
    "DriftProbe",
    "base_outputs",
    "measure",
    "perplexity",
    "protocols_of",
    "summarise_cases",
    "template_of",
]
