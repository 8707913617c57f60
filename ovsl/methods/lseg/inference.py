"""The former place of `MultiScaleSum`, which configurations name."""

from __future__ import annotations

from ovsl.methods.lseg.multi_scale_sum import MultiScaleSum as MultiScaleSum
