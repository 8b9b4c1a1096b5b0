"""Parameters: every bad value is one sentence, and every stage knows what affects it."""

import pytest

from cfdistill.errors import ParamsError
from cfdistill.files import project_root
from cfdistill.params import NEUTRAL, PATHS, Params, read_yaml
from cfdistill.pipeline import STAGES

FILES = (project_root() / "params").rglob("*.yaml")
PROFILES = sorted(file for file in FILES if "\ncells:" not in file.read_text())  # the others are grids
FILED = {"rationale_source": "file", "rationale_file": "r.jsonl"}
BAD_VALUES = [
    ({"epoch": 3}, r"unknown parameter epoch; did you mean epochs\?"),
    ({"zzz": 3}, "unknown parameter zzz; known are profile, train_dataset"),
    ({"precision": "fp16"}, "precision: Input should be 'auto', 'fp32' or 'bf16'"),
    ({"epochs": 0}, "epochs: Input should be greater than 0"),
    ({"seed": 1.5}, "seed: Input should be a valid integer"),
    ({"train_dataset": "weasel"}, "train_dataset: unknown weasel; known are weasel-commonsense"),
    ({"methods": ["ft", "dpo"]}, "methods: unknown dpo; known are base, ft, ft-cot"),
    ({"methods": []}, "methods: needs at least one value"),
    ({"methods": "ft,ft"}, "methods: needs at least one value, each once"),
    ({"vote_threshold": 6}, r"vote_threshold is above reasoning_paths \(3\)"),
    ({"methods": ["cf-natural"]}, "cf-natural needs questions that weasel-commonsense does not have"),
    ({"methods": ["ft-cot-balanced"], "train_dataset": "csqa"}, "questions that csqa does not have"),
    ({"scorings": "elimination"}, "scorings: must hold direct"),
    ({"min_edit_ratio": 0.9}, "min_edit_ratio is above max_edit_ratio"),
    (FILED, "methods: cf-distill cannot be trained with rationale_source: file.*use base, ft, ft-cot or"),
    ({"rationale_source": "file", "methods": ["ft"]}, "rationale_source: file needs rationale_file"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_bad_values_are_one_sentence(values, message):
    with pytest.raises(ParamsError, match=message) as caught:
        Params.build(values)
    assert "\n" not in str(caught.value)


def test_command_line_text_is_understood():
    params = Params.build({"methods": "ft, cf-distill", "learning_rate": "1e-4", "seed": "3"})
    assert (params.methods, params.learning_rate, params.seed) == (["ft", "cf-distill"], 1e-4, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no valid YAML"),
        *[(text, "must hold") for text in ("- 1\n- 2\n", "")],
        ("seed: 1\nepochs: 2\nseed: 2\n", "is no valid YAML: seed stands there twice"),
        (None, "does not exist"),
    ],
)
def test_bad_yaml_is_one_sentence(tmp_path, text, said):
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ParamsError, match=rf"p\.yaml {said}"):
        Params.from_yaml(tmp_path / "p.yaml")


@pytest.mark.parametrize("file", PROFILES, ids=lambda f: f.stem)
def test_profiles_are_valid_and_list_only_what_differs(file):
    assert Params.from_yaml(file).profile == file.stem
    defaults = Params().model_dump()
    same = [name for name, value in read_yaml(file).items() if value == defaults[name]]
    assert set(same) <= {"profile"}
    assert (Params.from_yaml(file) == Params()) == (file.stem == "offline")  # the default study


def test_a_misspelt_parameter_of_a_notebook_is_refused():
    cells = ["", "spurious_rate = 0.9  # a comment", "# Parameters\nspurious_rat = 0.2\n", "import os\nx = 1"]
    with pytest.raises(ParamsError, match=r"unknown parameter spurious_rat; did you mean spurious_rate\?"):
        Params.from_namespace({"spurious_rate": 0.9, "spurious_rat": 0.2, "In": cells})
    assert Params.from_namespace({"seed": 4, "params": None, "In": [""]}).seed == 4
    later = [*cells[:2], "import os", "mine = 3", "params = Params.from_namespace(globals())"]
    assert Params.from_namespace({"spurious_rate": 0.9, "In": later}).spurious_rate == 0.9


def test_every_parameter_reaches_a_stage_by_value_or_by_content_or_is_neutral():
    by_value = {name for stage in STAGES for name in Params().reaching(stage)}
    by_content = {"student", "precision", "teacher", "teacher_model", "teacher_base_url", "teacher_cache",
                  "teacher_max_tokens", "teacher_noise", "test_datasets", *PATHS}  # fmt: skip
    assert sorted([*by_value, *by_content, *NEUTRAL]) == sorted(Params.model_fields)  # each in one of them
    assert ["seed" in Params().reaching(stage) for stage in ("training", "rationales")] == [True, False]
