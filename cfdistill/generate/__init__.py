"""Rewrites and rationales: what the teacher makes of the training questions."""
