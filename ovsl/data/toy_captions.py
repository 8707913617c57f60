"""Images of the toy world with captions, and the fixed sets that a CLIP trained on them is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ovsl.data.toy import CLASSES, THINGS, render_scene

VALIDATION_SEED = 1_000_003
VIEW_SHAPE: dict[str, Any] = {"num_objects": (1, 1), "object_size": (0.55, 0.95)}


def render_views(count: int, size: int = 128, seed: int = VALIDATION_SEED) -> tuple[Tensor, Tensor]:
    """Single-object images for zero-shot classification, the thing classes in turn.

    Args:
        count: Number of images.
        size: Height and width.
        seed: Seed of the world; the default one is not used in training.

    Returns:
        Images, uint8 `(count, 3, size, size)`, and class indices `(count,)`.
    """
    labels = torch.arange(count) % len(THINGS)
    views = [
        render_scene(seed, 10_000 + i, size, num_objects=(1, 1), classes=[int(label)]) for i, label in enumerate(labels)
    ]
    return _stack_images([view.image for view in views]), labels


def render_masked_scenes(count: int, size: int = 128, seed: int = VALIDATION_SEED) -> tuple[Tensor, Tensor]:
    """Scenes of one to four objects with their masks, for dense evaluation only.

    Returns:
        Images, uint8 `(count, 3, size, size)`, and class indices `(count, size, size)`.
    """
    scenes = [render_scene(seed, i, size) for i in range(count)]
    return _stack_images([s.image for s in scenes]), torch.from_numpy(np.stack([s.semantic for s in scenes])).long()


def _stack_images(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


class ToyCaptions(IterableDataset):
    """Endless stream of whole batches; batch `i` is a function of `(seed, i)`.

    Args:
        seed: Seed of the world drawn from.
        scene_batch_size: Scenes (one to four objects) in a batch of scenes.
        scene_size: Height and width of a scene.
        view_batch_size: Views (one large object) in a batch of views.
        view_size: Height and width of a view.
        views_first: Number of batches at the start that hold views only; later ones alternate with scenes.
    """

    def __init__(
        self,
        seed: int,
        scene_batch_size: int,
        scene_size: int,
        view_batch_size: int,
        view_size: int,
        views_first: int,
    ) -> None:
        self.seed, self.views_first = seed, views_first
        self.scene_batch_size, self.scene_size = scene_batch_size, scene_size
        self.view_batch_size, self.view_size = view_batch_size, view_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        cv2.setNumThreads(0)
        worker = torch.utils.data.get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self.batch(number)
            number += stride

    def batch(self, number: int) -> dict[str, Any]:
        """Draw one batch: `image` uint8 `(B, 3, H, W)`, `caption` list, `present` bool `(B, C)`."""
        view = number < self.views_first or number % 2 == 1
        count, size = (self.view_batch_size, self.view_size) if view else (self.scene_batch_size, self.scene_size)
        scenes = [
            render_scene(self.seed, number * count + i, size, **(VIEW_SHAPE if view else {})) for i in range(count)
        ]
        present = torch.zeros(count, len(CLASSES), dtype=torch.bool)
        for row, scene in enumerate(scenes):
            present[row, list(scene.classes)] = True
        return {
            "image": _stack_images([scene.image for scene in scenes]),
            "caption": [scene.caption for scene in scenes],
            "present": present,
        }


class ToyCaptionData(L.LightningDataModule):
    """Generated images with captions for training, and a fixed set with masks for evaluation.

    Args:
        seed: Seed of the training world.
        scene_batch_size: Scenes in a training batch of scenes.
        scene_size: Height and width of scenes.
        view_batch_size: Single-object views in a training batch of views.
        view_size: Height and width of those views, which show objects at about the scale of the scenes.
        views_first: Number of batches at the start that hold views only.
        num_workers: Loader processes.
        evaluation_scenes: Scenes for the dense evaluation.
        evaluation_views: Single-object views for zero-shot classification.
    """

    def __init__(
        self,
        seed: int = 100,
        scene_batch_size: int = 24,
        scene_size: int = 128,
        view_batch_size: int = 64,
        view_size: int = 64,
        views_first: int = 600,
        num_workers: int = 0,
        evaluation_scenes: int = 100,
        evaluation_views: int = 360,
    ) -> None:
        super().__init__()
        self.stream = ToyCaptions(seed, scene_batch_size, scene_size, view_batch_size, view_size, views_first)
        self.num_workers, self.scene_size = num_workers, scene_size
        self.evaluation_scenes, self.evaluation_views = evaluation_scenes, evaluation_views

    def train_dataloader(self) -> DataLoader:
        """Go through the endless stream."""
        return DataLoader(self.stream, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """One item that holds all scenes and all views."""
        image, semantic = render_masked_scenes(self.evaluation_scenes, self.scene_size)
        view, label = render_views(self.evaluation_views, self.scene_size)
        everything: Any = [{"image": image, "semantic": semantic, "view": view, "label": label}]
        return DataLoader(everything, batch_size=None)
