"""Measures of quality, and the file format in which results are kept.

`segmentation` holds the torchmetrics `Metric`; `results` is free of torch, so that tables start fast. Import from the
modules themselves.
"""
