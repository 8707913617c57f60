"""The effective recipe of a run in a dozen lines: what is trained on what, how, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace

from ovsl.data import SegmentationDataModule, TrainTransform
from ovsl.methods.base import SegmentationModule
from ovsl.tools.models import forget_weights


def recipe(model: SegmentationModule, data: SegmentationDataModule, trainer: Mapping[str, Any]) -> str:
    """Describe a run that is not started.

    Args:
        model: The method, built.
        data: The data; nothing is read.
        trainer: The trainer's settings, as configured.
    """
    lines = {"data": _data(data), "augmentation": _augmentation(data.train_transform)}
    devices = _devices(trainer.get("devices")) * (trainer.get("num_nodes") or 1)
    accumulated, steps = trainer.get("accumulate_grad_batches") or 1, trainer.get("max_steps") or -1
    images = data.batch_size * devices * accumulated
    length = f"{steps} steps = {images * steps} images" if steps > 0 else "until stopped"
    lines["batch"] = f"{data.batch_size} x {devices} devices x {accumulated} accumulated = {images}; {length}"
    if model.trainable:
        optimizer = model.build_optimizer()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        total = sum(p.numel() for p in model.parameters())
        lines["trains"] = (
            f"{len(trained)} tensors, {sum(p.numel() for p in trained) / 1e6:.2f} M of {total / 1e6:.2f} M"
        )
        for group in optimizer.param_groups:
            decay = group.get("weight_decay", 0)
            lines[f"group {group.get('name')}"] = (
                f"{len(group['params'])} tensors, rate {group['lr']:g}, decay {decay:g}"
            )
        lines["optimiser"] = type(optimizer).__name__ + _clipping(trainer)
        lines["schedule"] = _schedule(model, optimizer.param_groups[0]["lr"], steps)
    tests = "as in training" if model.mixed_precision_evaluation else "float32"
    lines["precision"] = f"{trainer.get('precision') or 'float32'} in training, {tests} in evaluation"
    lines["evaluation"] = ", ".join(data.evaluation) + f", every {trainer.get('val_check_interval') or 'epoch'}"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def anywhere(config: Namespace) -> None:
    """Let a machine print a recipe that has neither the devices nor the weights that its run asks for.

    Args:
        config: The parsed configuration of a run, changed in place.
    """
    config.trainer.update(Namespace(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", precision=None))
    forget_weights(config)


def _devices(asked: Any) -> int:
    if isinstance(asked, list):
        return len(asked)
    return int(asked) if str(asked).isdigit() else 1


def _data(data: SegmentationDataModule) -> str:
    vocabulary = data.training_vocabulary
    if data.train is None or vocabulary is None:
        return "no training data"
    # The name of a source of the catalogue looks for its files.
    entry = getattr(data.train, "entry", None)
    name = data.train.name if entry is None else f"{entry.name}/{data.train.split}"  # type: ignore[attr-defined]
    hidden = len(vocabulary.unseen_indices)
    what = "hidden from training" if data.ignore_unseen else "unlabelled to the method"
    grouped = ", batches by orientation" if data.group_by_orientation else ""
    return f"{name}, {len(vocabulary)} classes" + (f", {hidden} unseen, {what}" if hidden else "") + grouped


def _augmentation(transform: TrainTransform) -> str:
    steps = " > ".join(type(step).__name__ for step in transform.pipeline(255).transforms)
    defaults = TrainTransform(crop_size=1)
    changed = (
        f"{field.name} {getattr(transform, field.name)}"
        for field in fields(transform)
        if field.name in ("scale", "flip", "fill") or getattr(transform, field.name) != getattr(defaults, field.name)
    )
    return f"{steps} ({', '.join(changed)})"


def _clipping(trainer: Mapping[str, Any]) -> str:
    value = trainer.get("gradient_clip_val")
    return f", gradients clipped to {value:g}" if value else ", no clipping"


def _schedule(model: SegmentationModule, rate: float, steps: int) -> str:
    name = type(model.schedule).__name__
    if steps <= 0:
        return name
    places = (0, steps // 4, steps // 2, 3 * steps // 4, steps - 1)
    rates = (f"{model.schedule.learning_rate(rate, step, steps):.4g} at {step}" for step in places)
    return f"{name}: the first group {', '.join(rates)}"
