"""Sums of a pass over text that are kept from time to time, so that one which was interrupted does not begin again."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from nas_plugin.files import read_tensors, write_tensors
from nas_plugin.parallel import Group

logger = logging.getLogger(__name__)

_FORMAT = "nas-plugin-sums-1"
_SECONDS = 600.0
# Writing takes at most one part in so many of the time.
_SHARE = 20


class OtherTextError(Exception):
    """The text is not the one that the kept sums are of; never seen by callers of `moments_for`."""


class KeptSums:
    """A folder with one file for each layer and process; each says how many passes of the text are in it.

    Attributes:
        folder: The folder, beside the file of second moments that is being made.
    """

    def __init__(self, folder: Path, group: Group) -> None:
        """Name the folder; nothing is read or written.

        Args:
            folder: The folder.
            group: Processes that share the passes.
        """
        self.folder = folder
        self._of = f"{group.rank}-of-{group.size}"
        self._about: dict[str, str] = {}
        # Layer -> last pass in its sum, and digest of the text up to there.
        self._done: dict[int, tuple[int, str]] = {}
        self._layers: list[int] = []
        self._passes = 0
        self._since, self._pause = time.monotonic(), _SECONDS

    def take_up(self, sums: Mapping[int, Tensor], about: Mapping[str, str]) -> None:
        """Fill sums with those that are kept, if they are of the same model and the same share of the passes.

        Args:
            sums: Layer -> `(d_in, d_in)`, float64; filled in place.
            about: Fingerprints of what they are of.
        """
        self._about, self._layers = {**about, "format": _FORMAT}, list(sums)
        for layer, matrix in sums.items():
            path = self._path(layer)
            if not path.exists():
                continue
            try:
                metadata, tensors = read_tensors(path, "sum")
                at = int(metadata.pop("pass", "")), metadata.pop("text", "")
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be used: %s", path, str(error)[:200])
                continue
            found = tensors["sum"]
            if metadata != self._about or found.shape != matrix.shape or found.dtype != matrix.dtype:
                logger.warning("%s is of something else; it is not used", path)
                continue
            if bool(torch.isfinite(found).all()):
                matrix.copy_(found)
                self._done[layer] = at
        if self._done:
            logger.info("going on with the sums in %s", self.folder)

    def missing(self, number: int, text: str) -> list[int]:
        """Return the layers whose sums lack a pass.

        Args:
            number: The pass, from 0.
            text: Digest of the text up to its end.

        Returns:
            The layers.

        Raises:
            OtherTextError: A sum has been made of another text.
        """
        for last, digest in self._done.values():
            if last == number and digest != text:
                raise OtherTextError
        self._passes = number + 1
        return [layer for layer in self._layers if number > self._done.get(layer, (-1, ""))[0]]

    def check_end(self) -> None:
        """Refuse sums that are of more text than there was.

        Raises:
            OtherTextError: One is.
        """
        if any(last >= self._passes for last, _ in self._done.values()):
            raise OtherTextError

    def due(self) -> bool:
        """Tell whether it is time to write."""
        return time.monotonic() - self._since >= self._pause

    def put(self, sums: Mapping[int, Tensor], number: int, text: str) -> None:
        """Write the sums, one layer after another: a kill between two of them loses nothing.

        Args:
            sums: Layer -> sum.
            number: The last pass in them.
            text: Digest of the text up to its end.
        """
        began = time.monotonic()
        for layer, matrix in sums.items():
            if number > self._done.get(layer, (-1, ""))[0]:
                write_tensors(self._path(layer), {"sum": matrix}, {**self._about, "pass": str(number), "text": text})
                self._done[layer] = number, text
        self._since = time.monotonic()
        self._pause = max(_SECONDS, _SHARE * (self._since - began))

    def remove(self) -> None:
        """Remove this process's files, and the folder if nothing else lies in it."""
        # Also what a kill has left of a file that was being written.
        for pattern in (f"layer-*-{self._of}.safetensors", f".layer-*-{self._of}.safetensors.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        self._done = {}
        with suppress(OSError):  # other processes have files in it, or it is gone already
            self.folder.rmdir()

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}-{self._of}.safetensors"
