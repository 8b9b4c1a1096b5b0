"""A small study's first three stages, made without a teacher, for tests of what follows them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfdistill import files, pipeline
from cfdistill.generate import counterfactual
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, Rationale, answer_text

TEST_DATA = Path(os.environ.get("CFDISTILL_TEST_DATA", files.project_root().parent / "shared" / "data"))
"""Folder with the benchmarks' real files (`benchmarks/`) and published rationales (`rationales/`)."""


def changed(params: Params, **changes: Any) -> Params:
    """Return the parameters with some of them changed, without checks."""
    return params.model_copy(update=changes)


def counterfactual_of(question: Question) -> Counterfactual:
    """Return the question with its last word changed and the next option right."""
    answer = (question.answer + 1) % len(question.options)
    changed = replace(question, id=f"{question.id}~cf", stem=f"{question.stem} Or not?", answer=answer)
    return Counterfactual(changed, question.id, f"{question.stem} [MASK]", votes=5, paths=5, edit_ratio=0.2)


def rationales_of(question: Question) -> list[Rationale]:
    """Return both views of a question."""
    answer = answer_text(question.options, question.answer)
    wrong = [option for i, option in enumerate(question.options) if i != question.answer]
    said = {"positive": question.options[question.answer], "negative": f"not {', nor '.join(wrong)}"}
    return [Rationale(question.id, view, f"It is {text}. {answer}") for view, text in said.items()]


def make_upstream(params: Params) -> None:
    """Complete the stages data, counterfactuals and rationales; one negative view is missing."""
    for part in pipeline.parts("data", params):
        pipeline.build("data", params, **part)
    questions = pipeline.questions(params.train_dataset, "train", params)
    rewrites = [counterfactual_of(question) for question in questions[::2]]
    views = [r for q in [*questions, *(c.question for c in rewrites)] for r in rationales_of(q)][:-1]
    for name, records in (("counterfactuals", rewrites), ("rationales", views)):
        for part in pipeline.parts(name, params):
            stage = pipeline.locate(name, params, **part)
            if not stage.is_complete():
                with stage.draft(params) as draft:
                    draft.write(f"{name}.train.jsonl", records)
                    counterfactual.funnel_table([]).to_csv(draft.path / "funnel.csv", index=False)


def write_rows(folder: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """Write `count` questions of one's own, and return their rows."""
    options = ["attic", "cellar"]
    asked = [(f"{kind}{i}", f"Ida lost {kind} {i}. Where is it?", options, i % 2) for i in range(count)]
    rows = [dict(zip(("id", "stem", "options", "answer"), row, strict=True)) for row in asked]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_user_files(root: Path) -> dict[str, Any]:
    """Write all files that a study of one's own rows and rationales reads, and return the parameters."""
    train, *_ = (write_rows(root / "user", kind, 4) for kind in ("train", "validation", "test"))
    told = [{"id": row["id"], "rationale": "It is.", "predicted": "AB"[row["answer"]]} for row in train]
    (root / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    places = {"data_root": str(root), "rationale_file": str(root / "rationales.jsonl")}
    return places | {"train_dataset": "user", "test_datasets": ["user"], "rationale_source": "file"}
