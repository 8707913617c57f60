"""Losses, matching and point sampling."""
