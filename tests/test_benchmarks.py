"""The real benchmarks: each from small self-written files, and from the official ones where they are."""

import json
import re
import tracemalloc

import pytest
from studies import TEST_DATA

from cfdistill import data
from cfdistill.data import benchmark
from cfdistill.errors import DataError
from cfdistill.params import DATASETS, Params

NUMBERED = [("1", "a rock"), ("2", "a leaf"), ("3", "a cloud"), ("4", "a lamp")]
LETTERED = [(label, f"thing {label}") for label in "ABCDEFGH"]


def nested(number, choices, key):
    """Return a row as CSQA, QASC, ARC and OpenBookQA publish it."""
    options = [{"text": text, "label": label} for label, text in choices]
    return {
        "id": f"row{number}",
        "question": {"stem": f" Which one is {number}? ", "choices": options},
        "answerKey": key,
    }


def quarel(number, index):
    return {
        "question": f"Eli ran {number} miles. He was (A) slower (B) faster than Ann.",
        "answer_index": index,
    }


ROWS = {
    "csqa": [nested(i, reversed(LETTERED[:5]), "B") for i in range(60)],  # out of order, as a file may be
    "qasc": [nested(i, LETTERED, "H") for i in range(60)],
    "arc-challenge": [nested(0, NUMBERED, "3"), nested(1, LETTERED[:3], "A"), nested(2, LETTERED[:5], "E")],
    "arc-easy": [nested(0, LETTERED[:4], "D"), nested(1, NUMBERED[:3], "1")],
    "openbookqa": [nested(i, LETTERED[:4], "C") for i in range(3)],
    "quarel": [quarel(0, 0), quarel(1, 1)],
    "user": [{"id": "mine", "stem": "Is it?", "options": ["no", "yes"], "answer": 1}],
}
ROWS["arc-challenge-dev"] = ROWS["arc-challenge"]
RIGHT = {
    "csqa": ["thing B"],
    "qasc": ["thing H"],
    "arc-challenge": ["a cloud", "thing A", "thing E"],
    "arc-challenge-dev": ["a cloud", "thing A", "thing E"],
    "arc-easy": ["thing D", "a rock"],
    "openbookqa": ["thing C"],
    "quarel": ["slower", "faster than Ann."],
    "user": ["yes"],
}


def write(folder, name, rows=None, end="\n"):
    """Write all files of a benchmark and return parameters that read them whole."""
    info = data.BENCHMARKS[name]
    (folder / info.folder).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in (rows or ROWS[name])]
    for source in info.sources.values():
        (folder / info.folder / source.file).write_text("\n".join(lines) + end, encoding="utf-8")
    return whole(folder)


def whole(root, **more):
    most = dict.fromkeys(("train_questions", "validation_questions", "test_questions"), 10**6)
    return Params(data_root=str(root), run_root=f"{root}/runs", **most, **more)


def test_every_data_set_has_a_loader():
    assert set(DATASETS) == {*data.BENCHMARKS, *(d for d in DATASETS if d.startswith("weasel-"))}


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_questions(tmp_path, name):
    params = write(tmp_path, name)
    questions = data.load(name, "test", params)
    assert len(questions) == len(ROWS[name])
    assert [q.options[q.answer] for q in questions[: len(RIGHT[name])]] == RIGHT[name]
    assert all(q.stem == q.stem.strip() and q.dataset == name for q in questions)
    assert data.load(name, "train", Params(data_root=str(tmp_path), train_questions=1)) == data.load(
        name, "train", params
    )[:1]  # fmt: skip


def test_options_of_quarel_are_taken_out_of_the_text(tmp_path):
    question = data.load("quarel", "train", write(tmp_path, "quarel"))[0]
    assert question.stem == "Eli ran 0 miles. He was"
    assert question.options == ("slower", "faster than Ann.")
    assert question.id == "train-1"


@pytest.mark.parametrize("name", ["csqa", "qasc"])
def test_without_a_validation_file_a_fixed_tenth_of_train_is_held_out(tmp_path, name):
    params = write(tmp_path, name)
    train, held_out = ({q.id for q in data.load(name, s, params)} for s in ("train", "validation"))
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == len(ROWS[name])
    assert 0 < len(held_out) < 15


GOOD = nested(1, LETTERED[:5], "B")
BAD = {
    "malformed": ['{"id": ', '{"id": "x"}', '["no", "object"]', nested(2, LETTERED[:5], "Z"), "7",
                  nested(3, [("A", "one")], "A"), nested(4, [("A", "one"), ("A", "two")], "A"),
                  nested(5, [("A", ""), ("B", "two")], "B")],
    "unlabeled": [nested(6, LETTERED[:5], ""), {k: v for k, v in GOOD.items() if k != "answerKey"}],
    "longer than 8000 characters": [nested(7, [("A", "x" * 9000), ("B", "y")], "A")],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason in BAD for row in BAD[reason]])
def test_a_bad_row_is_named_with_its_line(tmp_path, reason, row):
    params = write(tmp_path, "csqa", [GOOD, row])
    with pytest.raises(
        DataError, match=rf"dev_rand_split.jsonl: no CommonsenseQA rows: 1 {reason} \(first: line 2\)"
    ):
        data.load("csqa", "test", params)


def test_all_kinds_of_bad_rows_are_counted_in_one_message(tmp_path):
    rows = [GOOD, *(row for rows in BAD.values() for row in rows), '{"id": "cut o']
    params = write(tmp_path, "csqa", rows, end="")
    path = tmp_path / "csqa" / "dev_rand_split.jsonl"
    path.write_bytes(b'{"id": "caf\xe9"}\n' + path.read_bytes())
    with pytest.raises(DataError) as caught:
        data.load("csqa", "test", params)
    assert re.sub(r"\(first: line \d+\)", "", str(caught.value)).partition("rows: ")[2] == (
        "1 not UTF-8 ; 8 malformed ; 2 unlabeled ; 1 longer than 8000 characters ; 1 truncated "
        "; mend or delete them"
    )
    with pytest.raises(DataError, match="8 malformed"):  # also when the bad rows lie behind those wanted
        data.build("csqa", params.model_copy(update={"test_questions": 1, "train_questions": 1}))


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("quarel", {"question": "Is it warm?", "answer_index": 0}, "1 without options in the text"),
        ("quarel", quarel(1, 2), "1 malformed"),
        ("quarel", quarel(1, None), "1 unlabeled"),
        ("user", ROWS["user"][0] | {"answer": 2}, "1 with an answer that is no option's index"),
        ("user", ROWS["user"][0] | {"answer": None}, "1 unlabeled"),
    ],
)
def test_what_only_some_files_can_get_wrong(tmp_path, name, row, said):
    with pytest.raises(DataError, match=said):
        data.load(name, "test", write(tmp_path, name, [*ROWS[name], row]))


def test_odd_rows_and_missing_ones_are_counted(tmp_path):
    twice = [*ROWS["arc-challenge"], nested(2, LETTERED[:5], "E") | {"id": "again"},
             nested(9, [("A", "same"), ("B", "Same "), ("C", "other")], "C")]  # fmt: skip
    train, dev, _ = data.survey("arc-challenge", write(tmp_path, "arc-challenge", twice))
    expected = {"rows": 5, "official": 1119, "missing": 1114, "labels 1, 2, …": 1, "3 options": 2,
                "5 options": 2, "two equal options": 1, "asked twice": 1, "also in train": 0}  # fmt: skip
    assert train == {"file": "ARC-Challenge-Train.jsonl", **expected}
    assert dev["also in train"] == 5
    made = data.build("arc-challenge", whole(tmp_path))
    assert made.manifest()["notes"]["files"][0] == train


# The official files, where they are
OFFICIAL = TEST_DATA / "benchmarks"
SPLITS = [
    ("csqa", ("train", "validation"), "train_rand_split.jsonl", 9741),
    ("qasc", ("train", "validation"), "train.jsonl", 8134),
    ("arc-challenge", ("train",), "ARC-Challenge-Train.jsonl", 1119),
    ("arc-challenge", ("validation",), "ARC-Challenge-Dev.jsonl", 299),
    ("arc-easy", ("train",), "ARC-Easy-Train.jsonl", 2251),
    ("arc-easy", ("validation",), "ARC-Easy-Dev.jsonl", 570),
    ("quarel", ("train",), "train.jsonl", 1941),
    ("quarel", ("validation",), "dev.jsonl", 278),
    ("openbookqa", ("train",), "train.jsonl", 4957),
    ("openbookqa", ("test",), "test.jsonl", 500),
]


@pytest.mark.parametrize(("name", "splits", "file", "official"), SPLITS)
def test_official_files_hold_their_rows_or_the_missing_are_told(name, splits, file, official):
    path = OFFICIAL / data.BENCHMARKS[name].folder / file
    if not path.is_file():
        pytest.skip(f"{path} is not there; CFDISTILL_TEST_DATA names another folder")
    questions = [q for split in splits for q in data.load(name, split, whole(OFFICIAL))]
    (told,) = [facts for facts in data.survey(name, whole(OFFICIAL)) if facts["file"] == file]
    assert len(questions) == len({q.id for q in questions}) == told["rows"] == official - told["missing"]
    assert told["missing"] == (11 if (name, file) == ("quarel", "train.jsonl") else 0)


def test_streaming_holds_no_more_memory_for_more_rows(tmp_path):
    peaks = []
    for rows in (200, 4000):
        write(tmp_path, "user", [ROWS["user"][0] | {"id": f"q{i}"} for i in range(rows)])
        tracemalloc.start()
        assert (
            sum(1 for _ in benchmark.stream(data.BENCHMARKS["user"], "user", "test", whole(tmp_path))) == rows
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000  # bytes; 4000 questions held at once take millions


# The hub: a local repository, laid out as the hub's parquet conversions are
FLAT = {"label": ["A", "B", "C"], "text": ["one", "two", "three"]}
HUB_ROWS = {
    "csqa": {"id": "h", "question": "Which?", "question_concept": "it", "choices": FLAT, "answerKey": "B"},
    "qasc": {"id": "h", "question": "Which?", "choices": FLAT, "answerKey": "B", "fact1": "", "fact2": ""},
    "arc-easy": {"id": "h", "question": "Which?", "choices": FLAT, "answerKey": "B"},
    "openbookqa": {"id": "h", "question_stem": "Which?", "choices": FLAT, "answerKey": "B"},
    "quarel": {
        "id": "h",
        "question": "Which? (A) one (B) two",
        "answer_index": 1,
        "world_literals": {"a": [""]},
    },
}


def hub_clone(folder, name):
    """Write a repository of parquet files, one per split, in its configuration's folder if it has one."""
    import pandas

    info = data.BENCHMARKS[name]
    repository, _, configuration = info.hub
    place = folder / "hub" / repository / (configuration or "data")
    place.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [HUB_ROWS[name] | {"id": f"{split}{i}"} for i in range(40)]
        if split == "test" and name in ("csqa", "qasc"):  # whose test labels are hidden
            rows = [row | {"answerKey": ""} for row in rows]
        pandas.DataFrame(rows).to_parquet(place / f"{split}-00000-of-00001.parquet")
    if configuration:
        head = f"configs:\n- config_name: {configuration}\n  data_files:\n"
        files = "".join(
            f"  - split: {s}\n    path: {configuration}/{s}-*\n" for s in ("train", "validation", "test")
        )
        (place.parent / "README.md").write_text(f"---\n{head}{files}---\n")


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hub_gives_the_same_questions(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub_clone(tmp_path, name)
    params = whole(tmp_path, data_source="hub")
    tested = data.load(name, "test", params)
    expected = "validation" if name in ("csqa", "qasc") else "test"
    assert [q.id for q in tested] == [f"{expected}{i}" for i in range(40)]
    assert tested[0].stem == "Which?"
    assert tested[0].options[tested[0].answer] == "two"
    train, held_out = (data.load(name, split, params) for split in ("train", "validation"))
    assert {q.id for q in train}.isdisjoint(q.id for q in held_out)
    assert data.survey(name, params)[0]["rows"] == 40


def test_hub_repositories_are_pinned_and_a_failing_one_is_one_sentence(tmp_path, monkeypatch):
    import datasets

    for info in data.BENCHMARKS.values():
        assert info.hub is None or re.fullmatch("[0-9a-f]{40}", info.hub[1])
    with pytest.raises(DataError, match="user's questions come from files"):
        data.load("user", "test", whole(tmp_path, data_source="hub"))
    asked = []

    def unreachable(*args, **kwargs):
        asked.append((args, kwargs))
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"tau/commonsense_qa cannot be loaded from the hub \(no network at all\)"
    ):
        data.load("csqa", "test", whole(tmp_path, data_source="hub"))
    assert asked[0][1]["revision"] == data.BENCHMARKS["csqa"].hub[1]
    assert "trust_remote_code" not in asked[0][1]
