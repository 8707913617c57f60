"""Side effects of a run: pictures, prediction files, result files."""
