"""Processes that share the work: one copy of the model each, started together by `torchrun` or `accelerate launch`.

Measuring is shared: second moments, pilots of the anchor, evaluation at checkpoints. Edits are not: every process carries out all
of them, with values and keys as the first process found them, and all must come to the same weights. Only the first one writes
files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nas_plugin.errors import ProcessGroupError

_T = TypeVar("_T")
# What torchrun and accelerate launch tell the processes that they start.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ON_CPU = ("gloo", "mpi")


@dataclass(frozen=True)
class Group:
    """The processes of one launch, or a process by itself: then every method returns what it is given.

    Every process has to make the same calls in the same order.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def launched(cls) -> Group:
        """Return the group that this process was started in; outside of one nothing is imported or begun.

        Returns:
            The group; a process of its own where there is none, or where the process is the child of one that may have one.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            told = all(os.environ.get(name) for name in _TOLD) and int(os.environ["WORLD_SIZE"]) > 1
            if not told or multiprocessing.parent_process() is not None:
                return cls()
            from accelerate import PartialState

            PartialState(cpu=_without_accelerator())
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def device(self) -> torch.device | None:
        """The device that the launch means this process to use; None for a process by itself."""
        return None if self.size == 1 else _device()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def mine(self, items: Sequence[_T]) -> Sequence[_T]:
        """Return this process's share of some items."""
        return items[self.rank :: self.size]

    def gathered(self, values: Sequence[Any], count: int) -> list[Any]:
        """Put the results of all processes' shares together.

        Args:
            values: What was made of each of `mine(items)`, as JSON can hold it; numbers come through bit for bit.
            count: Number of items.

        Returns:
            What was made of each item, in order.
        """
        if self.size == 1:
            return list(values)
        parts = self._exchanged(list(values))
        whole: list[Any] = [None] * count
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of each process up; all get the same bits.

        Args:
            tensor: Of the same shape everywhere; overwritten.

        Returns:
            The sum.
        """
        if self.size == 1:
            return tensor
        moved = tensor.to(_device())
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def from_main(self, tensor: Tensor) -> Tensor:
        """Return a tensor as the first process has it; of the same shape everywhere."""
        if self.size == 1:
            return tensor
        # Bytes: not every backend knows every type.
        moved = tensor.detach().to(_device(), copy=True).contiguous()
        dist.broadcast(moved.view(-1).view(torch.uint8), 0)
        return moved.to(tensor.device)

    def said_by_main(self, value: Any) -> Any:
        """Return what the first process has of something that JSON can hold."""
        return value if self.size == 1 else self._exchanged(value if self.main else None)[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.size == 1 else any(self._exchanged(flag))

    def all(self, flag: bool) -> bool:
        """Whether it is so in all processes."""
        return flag if self.size == 1 else all(self._exchanged(flag))

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            self._exchanged(None)

    def agree(self, what: str, value: str) -> None:
        """Refuse to go on with processes that are not alike.

        Args:
            what: What is compared, for the message.
            value: A digest.

        Raises:
            ProcessGroupError: Another process has another one.
        """
        if self.size == 1:
            return
        values = self._exchanged(value)
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        if other is not None:
            raise ProcessGroupError(
                f"the processes of this launch do not have the same {what}: process 0 has {values[0][:12]}, process {other} "
                f"{values[other][:12]}. Give all the same model, hyperparameters and requests, on the same kind of device."
            )

    def refuse(self, what: str) -> None:
        """Refuse what is for one process alone.

        Args:
            what: What was asked for.

        Raises:
            ProcessGroupError: There are several processes.
        """
        if self.size > 1:
            raise ProcessGroupError(
                f"{what} is for one process and was asked for in a launch of {self.size}; run it without torchrun or "
                "accelerate launch."
            )

    @contextmanager
    def folder(self, path: Path, copied: bool) -> Iterator[Path]:
        """Let the first process write into a folder, and the others into temporary ones.

        Args:
            path: The folder; it need not exist.
            copied: Begin the others with what is in it.

        Yields:
            Where this process may write.
        """
        if self.main:
            self.wait()
            yield path
            return
        with tempfile.TemporaryDirectory() as own:
            if copied:
                shutil.copytree(path, own, dirs_exist_ok=True)
            # The first process changes nothing before the others have their copies.
            self.wait()
            yield Path(own)

    def _exchanged(self, value: Any) -> list[Any]:
        """Return what each process says."""
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_device())
        lengths = torch.zeros(self.size, dtype=torch.int64, device=data.device)
        lengths[self.rank] = len(data)
        dist.all_reduce(lengths)
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8, device=data.device)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[:length].cpu().numpy().tobytes())
            for part, length in zip(parts, lengths.tolist(), strict=True)
        ]


ALONE = Group()


def _without_accelerator() -> bool:
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # Older torch cannot be asked; accelerate then finds out by itself.
    accelerator = getattr(torch, "accelerator", None)
    return wanted or (accelerator is not None and not accelerator.is_available())


def _device() -> torch.device:
    """Return where the group's backend wants tensors."""
    if dist.get_backend() in _ON_CPU:
        return torch.device("cpu")
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device
