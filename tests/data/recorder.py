"""A module that trains on nothing and remembers which samples it saw."""

import hashlib

import lightning as L
import torch
from torch import nn


class Recorder(L.LightningModule):
    """Records step, ids and a digest of the pixels of every training batch, and the ids of every validation batch."""

    def __init__(self, reads_length_early: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.reads_length_early = reads_length_early
        self.trained: list[tuple] = []
        self.validated: list[str] = []

    def training_step(self, batch, batch_idx):
        pixels = batch["image"].numpy().tobytes() + batch["semantic"].numpy().tobytes()
        self.trained.append((self.global_step, batch["id"], hashlib.sha1(pixels).hexdigest()))
        return self.weight * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated += batch["id"]

    def configure_optimizers(self):
        if self.reads_length_early:
            # Makes the trainer build the training loader before the checkpoint's progress is restored.
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(steps: int, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(max_steps=steps, **{**defaults, **options})
