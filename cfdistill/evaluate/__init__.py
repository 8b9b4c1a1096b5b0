"""Evaluation: answers, audits, metrics and statistics."""
