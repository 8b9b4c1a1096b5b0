"""Whole studies: run them, keep their results, cross them in grids, and show them as a site."""
