"""Counterfactual distillation: teach small language models to reason instead of guess."""

__version__ = "0.1.0"
