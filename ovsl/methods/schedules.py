"""Learning-rate schedules over the whole run, in optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Schedule:
    """A constant learning rate; the base of all schedules."""

    def learning_rate(self, base: float, step: int, total_steps: int) -> float:
        """Learning rate at a step (0-based) of a group whose base rate is `base`."""
        return base

    def build(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """Attach the schedule to an optimiser, group by group."""
        bases = [group["lr"] for group in optimizer.param_groups]
        return LambdaLR(optimizer, [self._factor(base, total_steps) for base in bases])

    def _factor(self, base: float, total_steps: int) -> Callable[[int], float]:
        return lambda step: self.learning_rate(base, step, total_steps) / base if base else 0.0


class PolynomialSchedule(Schedule):
    """`(base - minimum) * (1 - step / total) ** power + minimum`, with an optional linear warm-up.

    During the warm-up the polynomial value of the step is multiplied by a factor that grows from `warmup_ratio` to
    1 (the rule of the MMSegmentation recipes).

    Args:
        power: Exponent of the decay.
        minimum: Learning rate at the end of the run.
        warmup_steps: Length of the warm-up.
        warmup_ratio: Factor at step 0.
    """

    def __init__(
        self, power: float = 0.9, minimum: float = 0.0, warmup_steps: int = 0, warmup_ratio: float = 1e-6
    ) -> None:
        self.power = power
        self.minimum = minimum
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio

    def learning_rate(self, base: float, step: int, total_steps: int) -> float:
        """See the class."""
        remaining = max(1 - step / max(total_steps, 1), 0.0)
        rate = (base - self.minimum) * remaining**self.power + self.minimum
        if step < self.warmup_steps:
            rate *= 1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio)
        return rate


class MultiStepSchedule(Schedule):
    """Multiply by `factor` at each milestone.

    Args:
        milestones: Steps at which the rate drops.
        factor: Multiplier at each of them.
    """

    def __init__(self, milestones: tuple[int, ...] = (), factor: float = 0.1) -> None:
        self.milestones = milestones
        self.factor = factor

    def learning_rate(self, base: float, step: int, total_steps: int) -> float:
        """See the class."""
        return base * self.factor ** sum(step >= milestone for milestone in self.milestones)


class CosineSchedule(Schedule):
    """Half a cosine from the base rate to `minimum`.

    Args:
        minimum: Learning rate at the end of the run.
    """

    def __init__(self, minimum: float = 0.0) -> None:
        self.minimum = minimum

    def learning_rate(self, base: float, step: int, total_steps: int) -> float:
        """See the class."""
        progress = min(step / max(total_steps, 1), 1.0)
        return self.minimum + (base - self.minimum) * (1 + math.cos(math.pi * progress)) / 2
