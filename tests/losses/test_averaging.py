"""What losses are divided by, and the figure logged beside them."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from ovsl.losses import average_count, pixel_accuracy


def _average(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = torch.tensor(float([5, 2][rank]))
    torch.save({"own": own, "average": average_count(own)}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_a_count_is_averaged_over_processes_and_the_own_one_stays(tmp_path: Path) -> None:
    multiprocessing.spawn(_average, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [float(each["average"]) for each in found] == [3.5, 3.5]
    assert [float(each["own"]) for each in found] == [5, 2]


def test_a_count_is_at_least_one() -> None:
    assert average_count(torch.tensor(0)) == 1
    assert average_count(torch.tensor(7)) == 7


def test_pixel_accuracy_leaves_ignored_pixels_out() -> None:
    logits = torch.eye(3)[[0, 1, 2, 0, 1]].T.view(1, 3, 1, 5)
    labels = torch.tensor([[[0, 1, 0, 255, 255]]])
    assert pixel_accuracy(logits, labels, 255).item() == pytest.approx(200 / 3)
    assert pixel_accuracy(logits, torch.full_like(labels, 255), 255) == 100
