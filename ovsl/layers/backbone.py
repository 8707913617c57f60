"""Image backbones of timm as pyramids of four maps."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional

from ovsl.errors import InputError

REDUCTIONS = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Any timm backbone with `features_only`, read as maps at strides 4, 8, 16 and 32.

    Plain vision transformers have maps of one stride only: those of four evenly spaced blocks are taken, and resized
    to the four strides.

    Args:
        name: timm model name, such as `mobilenetv2_100`.
        pretrained: Load timm's pretrained weights.
        options: More arguments of `timm.create_model`; `img_size` for models whose parameters depend on it.

    Attributes:
        channels: Channels of the four maps.
        mean: Channel means of timm's normalisation.
        std: Channel standard deviations.

    Raises:
        InputError: An unknown model, or one without maps at the four strides.
    """

    def __init__(self, name: str, pretrained: bool = False, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        options = dict(options or {})
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
            raise InputError(f"timm has no backbone {name!r}; similar: {close}.")
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
            if len(set(model.feature_info.reduction())) == 1:
                depth = len(model.model.blocks)
                indices = tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))
                options = {"dynamic_img_size": True, "dynamic_img_pad": True, **options}
                model = timm.create_model(
                    name, pretrained=pretrained, features_only=True, out_indices=indices, **options
                )
        except (RuntimeError, AttributeError, TypeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The backbone {name!r} cannot give a pyramid of features: {reason}") from error
        # Convolutions on CPUs and, in reduced precision, on GPUs are faster with the channels last in memory; what
        # follows keeps the layout of the maps.
        self.model = model.to(memory_format=torch.channels_last)
        self.name = name
        reductions = list(model.feature_info.reduction())
        self.is_plain = len(set(reductions)) == 1
        missing = [] if self.is_plain else [stride for stride in REDUCTIONS if stride not in reductions]
        if missing:
            raise InputError(
                f"The backbone {name!r} has maps at strides {reductions}, none at {missing[0]}; choose one with maps "
                "at 4, 8, 16 and 32."
            )
        # The last map of a stride is the deepest.
        deepest = {stride: index for index, stride in enumerate(reductions)}
        self._indices = (0, 1, 2, 3) if self.is_plain else tuple(deepest[stride] for stride in REDUCTIONS)
        self._channels_are_last_axis = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
        self.channels = tuple(model.feature_info.channels()[index] for index in self._indices)
        published = model.pretrained_cfg if hasattr(model, "pretrained_cfg") else model.default_cfg
        self.mean = tuple(published.get("mean", IMAGENET_DEFAULT_MEAN))
        self.std = tuple(published.get("std", IMAGENET_DEFAULT_STD))
        fixed = bool(published.get("fixed_input_size")) and not options.get("dynamic_img_size")
        side = options.get("img_size", published.get("input_size", (3, 224, 224))[-1])
        self.fixed_size = None if not fixed else (side, side) if isinstance(side, int) else tuple(side)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `(B, 3, H, W)` -> four maps `(B, C_i, H / stride, W / stride)`, fine to coarse."""
        size = (images.shape[-2], images.shape[-1])
        if self.fixed_size is not None and size != self.fixed_size:
            raise InputError(
                f"The backbone {self.name!r} was built for images of {self.fixed_size[0]}x{self.fixed_size[1]} and got "
                f"{size[0]}x{size[1]}; set img_size in backbone_options, and crop or slide with windows of that size."
            )
        maps = self.model(images)
        maps = [maps[index] for index in self._indices]
        if self._channels_are_last_axis:
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        if self.is_plain:
            sizes = [tuple(-(-side // stride) for side in size) for stride in REDUCTIONS]
            maps = [
                functional.interpolate(level, size=wanted, mode="bilinear", align_corners=False)
                for level, wanted in zip(maps, sizes, strict=True)
            ]
        return maps
