"""What a model can still do after editing: lm-eval on the live model, with tasks over local files, nothing downloaded."""

from nas_plugin.evaluation.capability.run import DEFINITIONS, capabilities
from nas_plugin.evaluation.capability.suite import PAPER, STANDARD, shipped_tasks

__all__ = ["DEFINITIONS", "PAPER", "STANDARD", "capabilities", "shipped_tasks"]
