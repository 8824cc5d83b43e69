"""Looking at an environment and a hyperparameter file before anything is edited: what is there, what is missing, what to do.

Nothing is downloaded, written or changed.
"""

from nas_plugin.doctor.examine import examine
from nas_plugin.doctor.finding import Finding, State

__all__ = ["Finding", "State", "examine"]
