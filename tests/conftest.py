"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest

from cfdistill.params import Params

# Shells let background jobs ignore Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that of several processes none is left with it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


SMALL = {"profile": "test", "test_datasets": ["weasel-commonsense", "weasel-science"]}
SMALL |= {"train_scenes": 6, "train_questions": 12, "validation_questions": 6, "test_questions": 8}
SMALL |= {"new_questions": 8, "audit_questions": 4, "max_new_tokens": 8, "max_new_tokens_elimination": 12}
SMALL |= {"student": "tiny-random", "epochs": 1.0, "batch_size": 4, "max_length": 1024, "frozen_layers": 0}
SMALL |= {"teacher": "offline", "teacher_noise": 0.1, "reasoning_paths": 5, "vote_threshold": 4}
SMALL |= {"counterfactuals_per_question": 1, "precision": "fp32"}


@pytest.fixture
def small_params(tmp_path: Path) -> Params:
    """Return parameters of a study that takes seconds, with all folders under tmp_path."""
    places = {"run_root": str(tmp_path / "runs"), "results_root": str(tmp_path / "results")}
    return Params.build(SMALL | places)
