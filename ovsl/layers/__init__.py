"""Parts that two methods or more share."""
