"""What a session keeps on disk: the ledger of its edits, their factors, and snapshots of its state."""

from nas_plugin.keep.keeper import Keeper
from nas_plugin.keep.ledger import Ledger
from nas_plugin.keep.undo import undo

__all__ = ["Keeper", "Ledger", "undo"]
