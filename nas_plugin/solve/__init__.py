"""The value optimisation: which hidden state at the last edited block would say the new fact."""

from nas_plugin.solve.descent import SolverSettings
from nas_plugin.solve.stopping import BatchMeanLoss, LossBelow, MostProbable, StoppingRule
from nas_plugin.solve.target import SolvedTargets, TargetSolver

__all__ = [
    "BatchMeanLoss",
    "LossBelow",
    "MostProbable",
    "SolvedTargets",
    "SolverSettings",
    "StoppingRule",
    "TargetSolver",
]
