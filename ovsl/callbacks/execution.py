"""How networks run: compiled, in another memory layout, with frozen weights of half the size."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ovsl.clip import FrozenCLIP
from ovsl.errors import InputError
from ovsl.methods.base import SegmentationModule


class Execution(Callback):
    """Run the same network in less time or memory; names of parameters and checkpoints stay as they are.

    Args:
        compile: Compile networks by `torch.compile`. Text, targets, matching and losses stay outside. The second size
            of images makes sizes variable, so that the following ones are not compiled again.
        backend: Backend of the compiler, `inductor` unless one looks for a mistake.
        channels_last: Keep the convolutions of the CLIP's image tower with channels last in memory, as cuDNN's kernels
            for half precision want them.
        bfloat16_tower: Store the frozen linear layers and convolutions of the image tower in bfloat16: half the memory,
            and no conversion at every call. The result is that of `trainer.precision: bf16-mixed`, which it needs in
            evaluation too.
    """

    def __init__(
        self,
        compile: bool = False,
        backend: str = "inductor",
        channels_last: bool = False,
        bfloat16_tower: bool = False,
    ) -> None:
        self.compile = compile
        self.backend = backend
        self.channels_last = channels_last
        self.bfloat16_tower = bfloat16_tower

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the networks before anything runs.

        Raises:
            InputError: A tower in bfloat16 without mixed precision in training and evaluation, or a method without a
                network to compile.
        """
        if not isinstance(pl_module, SegmentationModule):
            return
        if self.bfloat16_tower:
            if trainer.precision != "bf16-mixed" or not pl_module.mixed_precision_evaluation:
                raise InputError(
                    "execution.bfloat16_tower needs trainer.precision bf16-mixed and model.mixed_precision_evaluation "
                    "true: in float32 the tower would meet weights that are rounded."
                )
            store_in_bfloat16(pl_module.clip)
        if self.channels_last:
            pl_module.clip.model.visual.to(memory_format=torch.channels_last)
        if self.compile:
            networks = list(pl_module.networks())
            if not networks:
                raise InputError(
                    f"{pl_module.method_name} names no network that execution.compile could compile: leave it out, or "
                    "let the method have a `network`."
                )
            for network in networks:
                network.compile(backend=self.backend)


def store_in_bfloat16(clip: FrozenCLIP) -> None:
    """Bring the frozen linear layers and convolutions of an image tower to bfloat16; norms and positions stay."""
    for module in clip.model.get_submodule("visual").modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
