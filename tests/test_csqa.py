"""Real questions and the recorded real teacher, through all notebooks, at a small size."""

import pandas as pd
import pytest
from studies import TEST_DATA

from cfdistill import files, pipeline
from cfdistill.study import results, run

PROFILE = files.project_root() / "params" / "csqa.yaml"
SMALL = {"student": "tiny-random", "frozen_layers": 1, "max_length": 4096, "precision": "fp32"}
SMALL |= {"train_questions": 20, "validation_questions": 5, "test_questions": 10, "new_questions": 10}
SMALL |= {"max_steps": 2, "max_new_tokens": 8, "audit_questions": 2}
SMALL |= {"test_datasets": "csqa,arc-challenge-dev"}
SMALL |= {"methods": "base,ft-cot,multi-view-more,cf-natural,cf-distill"}


@pytest.mark.slow
@pytest.mark.skipif(not (TEST_DATA / "benchmarks" / "csqa").is_dir(), reason=f"{TEST_DATA} has no benchmarks")
def test_twenty_real_questions_run_through_all_notebooks(tmp_path):
    places = {"run_root": str(tmp_path), "results_root": str(tmp_path / "results")}
    params = run.run(PROFILE, SMALL | places | {"data_root": str(TEST_DATA / "benchmarks")})
    kept = pipeline.rewrites(params)
    assert len(kept) >= 15
    assert len(pipeline.originals(params, "multi-view-more")) == 20 + len(kept)
    siblings = pipeline.originals(params, "cf-natural")[20:]
    assert {q.split for q in siblings} == {"siblings"}
    table = pd.read_csv(results.folder(params) / "metrics.csv", keep_default_na=False)
    assert set(table["method"]) == set(params.methods)
    assert set(table["test_split"]) == {"test", "unused"}
    assert set(table["scoring"]) == {"direct", "cloze"}
