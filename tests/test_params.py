"""Parameters: every bad value is one sentence, and every stage knows what affects it."""

from itertools import pairwise

import pytest

from cfdistill.errors import ParamsError
from cfdistill.params import STAGES, Params, field_stages
from cfdistill.runs import project_root

PROFILES = sorted(
    file for file in (project_root() / "params").rglob("*.yaml") if "\ncells:" not in file.read_text()
)  # the others are grids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown parameter epoch; known are profile, train_dataset"),
        ({"epochs": "many"}, "epochs: Input should be a valid number"),
        ({"epochs": 0}, "epochs: Input should be greater than 0"),
        ({"seed": 1.5}, "seed: Input should be a valid integer"),
        ({"train_dataset": "weasel"}, "train_dataset: unknown weasel; known are weasel-commonsense"),
        ({"methods": ["ft", "dpo"]}, "methods: unknown dpo; known are ft, ft-cot"),
        ({"methods": []}, "methods: needs at least one value"),
        ({"methods": "ft,ft"}, "methods: needs at least one value, each once"),
        ({"teacher": "gpt"}, "teacher: Input should be 'offline', 'recorded' or 'live'"),
        ({"vote_threshold": 6}, r"vote_threshold is above reasoning_paths \(5\)"),
        ({"scorings": "elimination"}, "scorings: must hold direct"),
        ({"scorings": "direct,vote"}, "scorings: vote needs elimination"),
        ({"min_edit_ratio": 0.9}, "min_edit_ratio is above max_edit_ratio"),
        (
            {"rationale_source": "file", "rationale_file": "r.jsonl"},
            r"methods: cf-distill cannot be trained with rationale_source: file.*use ft, ft-cot or",
        ),
        ({"rationale_source": "file", "methods": ["ft"]}, "rationale_source: file needs rationale_file"),
    ],
)
def test_bad_values_are_one_sentence(values, message):
    with pytest.raises(ParamsError, match=message) as caught:
        Params.build(values)
    assert "\n" not in str(caught.value)


def test_command_line_text_is_understood():
    params = Params.build({"methods": "ft, cf-distill", "learning_rate": "1e-4", "seed": "3"})
    assert (params.methods, params.learning_rate, params.seed) == (["ft", "cf-distill"], 1e-4, 3)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", ""])
def test_bad_yaml_is_one_sentence(tmp_path, text):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ParamsError, match=r"p\.yaml (is no valid YAML|must hold)"):
        Params.from_yaml(file)
    with pytest.raises(ParamsError, match="does not exist"):
        Params.from_yaml(tmp_path / "other.yaml")


@pytest.mark.parametrize("file", PROFILES, ids=lambda f: f.stem)
def test_profiles_are_valid(file):
    assert Params.from_yaml(file).profile == file.stem


def test_defaults_are_the_default_study():
    assert Params.from_yaml(project_root() / "params" / "offline.yaml") == Params()


def test_namespace_ignores_what_is_no_parameter():
    assert Params.from_namespace({"seed": 4, "params": None, "In": []}).seed == 4


def test_key_covers_what_affects_a_stage_and_no_more():
    keys = {stage: set(Params().key(stage)) for stage in STAGES}
    for earlier, later in pairwise(STAGES):
        assert keys[earlier] <= keys[later]
    assert "seed" not in keys["rationales"]
    assert "seed" in keys["training"]
    assert "test_datasets" not in keys["evaluation"]
    assert keys["metrics"] == {name for name, stage in field_stages().items() if stage}
