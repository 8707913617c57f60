"""The order of samples: pure functions of (seed, epoch, position), so that a resumed run repeats an unbroken one.

A *position* counts training samples over the whole run and over all processes. Sample `p` of a source with `n` rows
is row `order(seed, p // n)[p % n]`; step `t` of a run with global batch `G` trains on positions
`t * G ... (t + 1) * G - 1`. Nothing but that integer has to be remembered: not what workers have prefetched, not the
state of a generator, not the contents of a shuffle buffer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import DistributedSampler


def row_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Random order of the rows of a source with cheap random access.

    Args:
        num_rows: Number of rows.
        seed: Seed of the run.
        epoch: Pass over the data, from 0.

    Returns:
        Permutation of `0 .. num_rows - 1`, int64 `(num_rows,)`.
    """
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def group_order(group_sizes: Sequence[int], seed: int, epoch: int, interleave: int) -> np.ndarray:
    """Random order of rows that can only be read in groups (the row groups of Parquet files).

    The groups are permuted with (seed, epoch), the rows of a group with (seed, epoch, group), and `interleave` groups
    are open at a time: each gives one row in turn and is replaced by the next group once it is empty. Reading in this
    order therefore never needs more than `interleave` groups at once.

    Args:
        group_sizes: Rows of each group, in the order of the files.
        seed: Seed of the run.
        epoch: Pass over the data, from 0.
        interleave: Number of groups that are mixed.

    Returns:
        Permutation of all rows (numbered over all groups in order), int64 `(sum(group_sizes),)`.
    """
    sizes = np.asarray(group_sizes, dtype=np.int64)
    first_row = np.concatenate([[0], np.cumsum(sizes)])
    # A group that takes over a lane starts in the round after its predecessor's last one.
    lanes = [(0, lane) for lane in range(max(1, min(interleave, len(sizes))))]
    rows, rounds, lane_of = [], [], []
    for group in np.random.default_rng([seed, epoch]).permutation(len(sizes)):
        start, lane = heapq.heappop(lanes)
        shuffled = np.random.default_rng([seed, epoch, int(group)]).permutation(sizes[group])
        rows.append(first_row[group] + shuffled)
        rounds.append(start + np.arange(sizes[group]))
        lane_of.append(np.full(sizes[group], lane))
        heapq.heappush(lanes, (start + int(sizes[group]), lane))
    if not rows:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate(rows)[np.lexsort((np.concatenate(lane_of), np.concatenate(rounds)))]


def orientation_order(order: np.ndarray, portrait: np.ndarray, batch_size: int, first: int = 0) -> np.ndarray:
    """Move rows of an order together so that batches hold images of one orientation.

    Detectron2's rule: the order is dealt into two queues, and a queue that holds a batch gives it. What is left in the
    queues when the epoch ends makes its last batches, which may be mixed.

    Args:
        order: Order of the rows in one epoch, `(n,)`.
        portrait: Whether the image of each row is no wider than high, bool `(n,)`.
        batch_size: Samples per process and step.
        first: Rows at the start that belong to a batch of the epoch before; they stay where they are.

    Returns:
        Another order of the same rows, `(n,)`.
    """
    kept, dealt = order[:first], order[first:]
    place = np.arange(len(dealt))
    upright = portrait[dealt]
    rank = np.where(upright, np.cumsum(upright), np.cumsum(~upright)) - 1
    queue_batch = 2 * (rank // batch_size) + upright
    _, batch, sizes = np.unique(queue_batch, return_inverse=True, return_counts=True)
    # A batch is given when its last row arrives, an incomplete one at the end.
    given = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(given, batch, place)
    given[sizes < batch_size] = len(dealt)
    return np.concatenate([kept, dealt[np.lexsort((place, given[batch]))]])


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of the augmentation of one sample in one epoch: a 32-bit integer from (seed, epoch, row index)."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


class PositionSampler(DistributedSampler):
    """Yields, for each training step of one process, the position of the first sample of its batch.

    The start is asked for whenever an epoch begins, so a loader made before a checkpoint was restored is still right.
    It is a `DistributedSampler` to Lightning, which therefore leaves it as it is.

    Args:
        start: Returns the position at which the next step begins, over all processes.
        batch_size: Samples per process and step.
        steps: Steps per epoch of the trainer; the same on every process.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, start: Callable[[], int], batch_size: int, steps: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(steps), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.start = start
        self.batch_size = batch_size
        self.steps = steps

    def __iter__(self) -> Iterator[int]:
        """Positions of the batches of this process, one per step."""
        global_batch = self.batch_size * self.num_replicas
        first = self.start() + self.rank * self.batch_size
        return iter(range(first, first + self.steps * global_batch, global_batch))

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return self.steps


class SectionSampler(DistributedSampler):
    """Yields, for evaluation, the batches of one process: lists of row indices, every row once over all processes.

    Nothing is repeated to make processes even. Each process gets one contiguous section of the rows and each of its
    workers one contiguous part of that (batch `i` goes to worker `i mod num_workers`), so that a row group is read
    by as few workers as possible.

    Args:
        num_rows: Rows of the source.
        batch_size: Rows per batch.
        num_workers: Workers of the loader.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, num_rows: int, batch_size: int = 1, num_workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(num_rows), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        section = np.array_split(np.arange(num_rows), world_size)[rank]
        batches = [section[i : i + batch_size].tolist() for i in range(0, len(section), batch_size)]
        workers = max(1, num_workers)
        # `array_split` puts the longer parts first: dealt out in turn, batch i stays with worker i mod workers.
        parts = [part.tolist() for part in np.array_split(np.arange(len(batches)), workers)]
        rounds = max((len(part) for part in parts), default=0)
        self.batches = [batches[part[turn]] for turn in range(rounds) for part in parts if turn < len(part)]

    def __iter__(self) -> Iterator[list[int]]:
        """List of row indices, one per batch."""
        return iter(self.batches)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)
