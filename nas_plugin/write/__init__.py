"""The smallest change of a matrix that maps keys to values: one recursion, six methods. Matrices in, matrices out."""

from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.gain import Gain, GainStep
from nas_plugin.write.methods import METHODS

__all__ = ["METHODS", "Gain", "GainStep", "LayerEditor"]
