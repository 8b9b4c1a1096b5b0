"""A user's own questions: the 20 rows that are shipped run through all notebooks."""

import json
import re

import pandas as pd
import pytest
from loopback import Loopback, completion

from cfdistill import pipeline
from cfdistill.errors import CfdistillError
from cfdistill.files import project_root
from cfdistill.study import results, run

PROFILE = project_root() / "params" / "smoke.yaml"
UNABLE = {"live": "live needs a key in OPENAI_API_KEY", "recorded": "none about user"}  # by teacher, why
UNABLE["offline"] = "the stand-in, knows only the testbed; .* or give published rationales"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def answer(body):
    """Answer a prompt as a teacher would who writes the number of the wanted option into the question."""
    asked = body["messages"][-1]["content"]
    stem = asked.partition("uestion: ")[2].partition("\nOptions: ")[0]
    options = asked.partition("\nOptions: ")[2].partition("\n")[0].split("; ")
    told = asked.rpartition("answer: ")[2]
    if "Masked question" in asked:
        fills = [f"case number {options.index(told)}"] * stem.count("[MASK]")
        return 200, completion(json.dumps({"fills": fills}))
    task = body["messages"][0]["content"]
    if "find the words that decide" in task:
        return 200, completion(json.dumps({"spans": [" ".join(stem.split()[:3])]}))
    if "thinking in small steps" in task:
        told = options[int(re.search(r"case number (\d)", stem, re.IGNORECASE)[1])]
    wrong = " ".join(f"Not {option}: it does not fit." for option in options if option != told)
    return 200, completion(f"{wrong} So the answer is {told}.")


def given(folder, **more):
    """Return the parameters of a study of the shipped rows, all of whose folders lie in one."""
    places = {"run_root": str(folder / "runs"), "results_root": str(folder / "results")}
    own = {"profile": "mine", "data_root": "docs/your_own_data", "train_dataset": "user"}
    return {**own, **places, "test_datasets": "user", "methods": "ft,ft-cot,cf-distill", **more}


@pytest.mark.parametrize(("teacher", "told"), UNABLE.items())
def test_nothing_is_made_where_nobody_can_explain_the_questions(teacher, told, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(CfdistillError, match=told):
        run.run(PROFILE, given(tmp_path, teacher=teacher))
    assert list(tmp_path.iterdir()) == []


def test_twenty_rows_run_through_all_notebooks(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Loopback(answer=answer) as server:
        params = run.run(PROFILE, given(tmp_path, teacher="live", teacher_base_url=server.url))
    folder = results.folder(params)
    metrics = pd.read_csv(folder / "metrics.csv")
    found = {name: set(metrics[name]) for name in ("test_split", "n", "method")}
    assert found == {"test_split": {"test"}, "n": {5}, "method": {"ft", "ft-cot", "cf-distill"}}
    assert metrics["lure_rate"].isna().all()
    assert (folder / "manifest.json").is_file()
    assert len(pipeline.rewrites(params)) >= 12
    assert sorted(f.stem for f in run.executed_folder(params).glob("0*.ipynb")) == list(run.NOTEBOOKS)
