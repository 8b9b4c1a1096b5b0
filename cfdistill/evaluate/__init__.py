"""Evaluation: answers, novelty, metrics and statistics."""
