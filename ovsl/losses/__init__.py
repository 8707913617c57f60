"""Losses, matching and point sampling."""

from ovsl.losses.mask_set import MaskSetCriterion, point_mask_losses
from ovsl.losses.matcher import HungarianMatcher, Matches
from ovsl.losses.points import Draw, point_sample, uncertain_points
from ovsl.losses.targets import MaskTargets

__all__ = [
    "Draw",
    "HungarianMatcher",
    "MaskSetCriterion",
    "MaskTargets",
    "Matches",
    "point_mask_losses",
    "point_sample",
    "uncertain_points",
]
