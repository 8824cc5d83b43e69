"""Measuring edits: token accuracy of many requests in few forward passes, at the numbers of EasyEdit's evaluator."""

from nas_plugin.evaluation.quality import evaluate_requests, summarise

__all__ = ["evaluate_requests", "summarise"]
