"""Losses, matching and point sampling."""

from __future__ import annotations

from ovsl.losses.accuracy import pixel_accuracy
from ovsl.losses.averaging import average_count
from ovsl.losses.cross_entropy import Average, pixel_cross_entropy
from ovsl.losses.dice import count_masks, dice_loss, mask_areas
from ovsl.losses.focal import sigmoid_focal_loss
from ovsl.losses.mask_set import MaskSetCriterion, point_mask_losses
from ovsl.losses.matcher import HungarianMatcher, Matches
from ovsl.losses.points import Draw, point_sample, uncertain_points
from ovsl.losses.targets import MaskTargets

__all__ = [
    "Average",
    "Draw",
    "HungarianMatcher",
    "MaskSetCriterion",
    "MaskTargets",
    "Matches",
    "average_count",
    "count_masks",
    "dice_loss",
    "mask_areas",
    "pixel_accuracy",
    "pixel_cross_entropy",
    "point_mask_losses",
    "point_sample",
    "sigmoid_focal_loss",
    "uncertain_points",
]
