"""CommonsenseQA (Talmor et al., 2019): five options, from the official release's JSON Lines.

The labels of the official test file are hidden, so, as the community does, the official dev file is
the test split, and a fixed tenth of the training file (by a hash of the id) is the validation split.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.runs import resolve
from cfdistill.schema import Question

TEST_SPLITS = ("test",)
FILES = {
    "train": "train_rand_split.jsonl",
    "validation": "train_rand_split.jsonl",
    "test": "dev_rand_split.jsonl",
}
LIMITS = {"train": "train_questions", "validation": "validation_questions", "test": "test_questions"}


def load(name: str, split: str, params: Params) -> list[Question]:
    """Read the first rows of a split from `<data_root>/csqa/`.

    Raises:
        DataError: the file is missing, the split is unknown, or a row is malformed.
    """
    if split not in FILES:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(FILES)}")
    path = resolve(params.data_root) / "csqa" / FILES[split]
    if not path.is_file():
        raise DataError(f"{path} is missing; put the official CommonsenseQA release files there")
    limit = getattr(params, LIMITS[split])
    questions: list[Question] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            question = _parse(name, split, line, f"{path}, line {number}")
            if split == "test" or _is_validation(question.id) == (split == "validation"):
                questions.append(question)
            if len(questions) == limit:
                break
    return questions


def _parse(name: str, split: str, line: bytes, where: str) -> Question:
    try:
        row: dict[str, Any] = json.loads(line)
        choices = sorted(row["question"]["choices"], key=lambda choice: choice["label"])
        return Question(
            id=str(row["id"]),
            dataset=name,
            split=split,
            stem=row["question"]["stem"].strip(),
            options=tuple(choice["text"].strip() for choice in choices),
            answer=[choice["label"] for choice in choices].index(row["answerKey"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: no CommonsenseQA row ({error!r}); mend or delete the line") from error


def _is_validation(question_id: str) -> bool:
    return int(hashlib.sha256(question_id.encode()).hexdigest(), 16) % 10 == 0
