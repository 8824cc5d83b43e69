"""The six editors by name: each a prior, a carry rule, a finishing step and a target rule."""

from nas_plugin.write.editor import LayerEditor
from nas_plugin.write.methods.alphaedit import AlphaEdit
from nas_plugin.write.methods.encore import ENCORE
from nas_plugin.write.methods.lyaplock import LyapLock
from nas_plugin.write.methods.memit import MEMIT
from nas_plugin.write.methods.prune import PRUNE
from nas_plugin.write.methods.rect import RECT

METHODS: dict[str, type[LayerEditor]] = {
    "MEMIT": MEMIT,
    "PRUNE": PRUNE,
    "RECT": RECT,
    "AlphaEdit": AlphaEdit,
    "ENCORE": ENCORE,
    "LyapLock": LyapLock,
}

__all__ = ["ENCORE", "METHODS", "MEMIT", "PRUNE", "RECT", "AlphaEdit", "LyapLock"]
