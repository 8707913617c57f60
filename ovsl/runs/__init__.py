"""Runs on disk: what a start may do in a run directory, what a checkpoint belongs to, and whole files or none."""
