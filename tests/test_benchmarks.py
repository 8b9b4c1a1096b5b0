"""The real benchmarks: each from small self-written files, and from the official ones where they are."""

import json
import re
import tracemalloc
from unittest.mock import Mock

import pandas
import pytest
from studies import TEST_DATA

from cfdistill import data
from cfdistill.data.benchmarks import BENCHMARKS, REACHING, survey
from cfdistill.errors import DataError
from cfdistill.params import DATASETS, Params

LIMITS = {name: f"{name}_questions" for name in ("train", "validation", "test")}
NUMBERED = [("1", "a rock"), ("2", "a leaf"), ("3", "a cloud"), ("4", "a lamp")]
LETTERED = [(label, f"thing {label}") for label in "ABCDEFGH"]


def nested(number, choices, key):
    asked = {"stem": f" Which one is {number}? ", "choices": [{"label": a, "text": b} for a, b in choices]}
    return {"id": f"row{number}", "question": asked, "answerKey": key}


def quarel(number, index):
    return {"question": f"Eli ran {number} miles. He was (A) slower (B) faster.", "answer_index": index}


MINE = {"id": "mine", "stem": "Is it?", "options": ["no", "yes"], "answer": 1}
ARC = [nested(0, NUMBERED, "3"), nested(1, LETTERED[:3], "A"), nested(2, LETTERED[:5], "E")]
EASY = [nested(0, LETTERED[:4], "D"), nested(1, NUMBERED[:3], "1")]
ROWS = {  # with the right options' texts
    "csqa": ([nested(i, reversed(LETTERED[:5]), "B") for i in range(60)], ["thing B"] * 60),
    "qasc": ([nested(i, LETTERED, "H") for i in range(60)], ["thing H"] * 60),
    **dict.fromkeys(("arc-challenge", "arc-challenge-dev"), (ARC, ["a cloud", "thing A", "thing E"])),
    **dict.fromkeys(("arc-easy", "arc-easy-dev"), (EASY, ["thing D", "a rock"])),
    "openbookqa": ([nested(i, LETTERED[:4], "C") for i in range(3)], ["thing C"] * 3),
    "quarel": ([quarel(0, 0), quarel(1, 1)], ["slower", "faster."]),
    "quarel-dev": ([quarel(i, 0) for i in range(60)], ["slower"] * 60),
    "user": ([MINE], ["yes"]),
}


def write(folder, name, rows=None, end="\n"):
    """Write all files of a benchmark and return parameters that read them whole."""
    place = folder / BENCHMARKS[name]["folder"]
    place.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in (rows or ROWS[name][0])]
    for file, *_ in BENCHMARKS[name]["sources"].values():
        (place / file).write_text("\n".join(lines) + end, encoding="utf-8")
    return whole(folder, train_dataset=name)


def whole(root, **more):
    return Params(data_root=str(root), **dict.fromkeys(LIMITS.values(), 10**6), **more)


def test_every_data_set_has_a_loader_and_a_pinned_revision():
    assert set(DATASETS) - set(BENCHMARKS) == {name for name in DATASETS if name.startswith("weasel-")}
    assert all(re.fullmatch("[^@]+/[^@]+@[0-9a-f]{40}|", entry["hub"]) for entry in BENCHMARKS.values())


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_questions(tmp_path, name):
    params = write(tmp_path, name)
    questions = data.load(name, "test", params)
    assert [q.options[q.answer] for q in questions] == ROWS[name][1]
    assert all((q.dataset, q.split, q.stem.strip("(A) ")) == (name, "test", q.stem) for q in questions)
    train, held_out = ({q.id for q in data.load(name, split, params)} for split in ("train", "validation"))
    if name in ("csqa", "qasc"):  # a fixed tenth of train
        assert 0 < len(held_out) < 15
        assert len(train) + len(held_out) == len(train | held_out) == 60


def test_labels_may_be_numbers_and_give_the_order(tmp_path):
    some = [(LETTERED[:5], "B"), (NUMBERED, 2), (list(enumerate(["one", "two"], 1)), "2")]
    for choices, key in (*some, (list(enumerate("abcdefghij", 1)), 2)):  # in which "10" comes last
        params = write(tmp_path, "arc-easy", [nested(0, reversed(choices), key)])
        (question,) = data.load("arc-easy", "test", params)
        assert (question.options, question.answer) == (tuple(text for _, text in choices), 1)


def test_rows_without_an_id_are_called_by_their_line_and_marks_are_no_text(tmp_path):
    rows = [MINE | {"id": None}, {k: v for k, v in MINE.items() if k != "id"}, "", MINE | {"id": ""}]
    params, path = write(tmp_path, "user", [*rows, MINE | {"id": 7}]), tmp_path / "user" / "test.jsonl"
    assert [q.id for q in data.load("user", "test", params)] == ["test-1", "test-2", "test-4", "7"]
    path.write_bytes(b"\xef\xbb\xbf\r\n" + b"\r\n".join(path.read_bytes().splitlines()) + b"\r\n")
    assert [q.id for q in data.load("user", "test", params)] == ["test-2", "test-3", "test-5", "7"]


GOOD = nested(1, LETTERED[:5], "B")
FLAT = {"question": "?", "answerKey": "A"}
UNUSABLE = [(LETTERED[:5], "Z"), ([("A", "one")], "A"), ([("A", "one"), ("A", "two")], "A"),
            ([("A", ""), ("B", "two")], "B"), ([(True, "1"), (False, "2")], True)]  # fmt: skip
LINES = ('{"id": ', '{"id": "x"}', '["a"]', "7", '{"id": ' + "9" * 5000 + "}")
COLUMNS = ({"label": "AB", "text": "ab"}, {"label": ["A"], "text": ["a", "b"]})
MALFORMED = [*LINES, *(nested(2, *own) for own in UNUSABLE), *(FLAT | {"choices": own} for own in COLUMNS)]
BAD = [  # rows of CSQA
    *[("malformed", row) for row in MALFORMED],
    *[("unlabeled", row) for row in (nested(6, LETTERED[:5], ""), {k: GOOD[k] for k in ("id", "question")})],
    ("longer than 8000 characters", nested(7, [("A", "x" * 9000), ("B", "y")], "A")),
    ("with NUL or half a character", nested(8, [("A", "x\0"), ("B", "y")], "A")),
    ("with NUL or half a character", GOOD | {"id": "\ud800"}),
]
ODD = [
    ("quarel", {"question": "Is it warm?", "answer_index": 0}, "without options in the text"),
    *[("quarel", quarel(1, index), reason) for index, reason in ((2, "malformed"), (None, "unlabeled"))],
    ("user", MINE | {"answer": 2}, "with an answer that is no option's index"),
    *[("user", MINE | {"answer": None}, "unlabeled"), ("user", MINE | {"options": "yes"}, "malformed")],
]


@pytest.mark.parametrize(("name", "row", "reason"), [*ODD, *(("csqa", row, reason) for reason, row in BAD)])
def test_a_bad_row_is_named_with_its_line(tmp_path, name, row, reason):
    params = write(tmp_path, name, [ROWS[name][0][0], "", row])
    with pytest.raises(DataError, match=rf"\.jsonl: no rows of {name}: 1 {reason} \(first: line 3\)"):
        data.load(name, "test", params)


def test_splits_of_a_data_set_that_was_written_in_sets(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS["csqa"], "pool", 4)
    rows = [nested(i, [*LETTERED[:4], ("E", f"own {i}")], "ABCD"[i // 10 % 4]) for i in range(80)]
    for i, row in enumerate(rows):  # of ten concepts: those of one share four options, and use them all
        row["question"]["question_concept"] = f"concept {i % 10}"
    params = write(tmp_path, "csqa", rows)
    sizes = {"train_questions": 5, "counterfactuals_per_question": 2, "new_questions": 99}
    small = params.model_copy(update=sizes | {"validation_questions": 2})
    found = {split: data.load("csqa", split, small) for split in REACHING}
    ids = {split: [q.id for q in own] for split, own in found.items()}
    everything = [q.id for q in data.load("csqa", "train", params)]
    assert ids["train"] + ids["more"] == everything[:15]
    concepts = {split: {q.scene for q in own} for split, own in found.items()}
    pool = {q.scene for q in data.load("csqa", "train", params)[:4]}
    assert pool.isdisjoint(concepts["development"] | concepts["unused"])
    assert concepts["unused"].isdisjoint(q.scene for q in data.load("csqa", "validation", params))
    assert set(ids["development"]) <= {q.id for q in data.load("csqa", "validation", params)}
    assert set(ids["development"]).isdisjoint(ids["validation"])
    pairs = zip(found["train"], found["siblings"], strict=True)
    assert all(a.scene == b.scene and a.options[a.answer] != b.options[b.answer] for a, b in pairs)
    assert set(ids["siblings"]) <= set(everything) - set(ids["train"])
    with pytest.raises(DataError, match="qasc has no split 'siblings'"):
        data.load("qasc", "siblings", write(tmp_path, "qasc"))


def test_all_kinds_of_bad_rows_are_counted_in_one_message(tmp_path):
    params = write(tmp_path, "csqa", [GOOD, *(row for _, row in BAD)], end="")
    path = tmp_path / "csqa" / "dev_rand_split.jsonl"
    path.write_bytes(b'{"id": "caf\xe9"}\n' + path.read_bytes())
    counts = "1 not UTF-8; 12 malformed; 2 unlabeled; 1 longer than 8000 characters; 2 with NUL or half a"
    few = params.model_copy(update={"test_questions": 1})  # the bad rows lie behind those wanted
    for call in (lambda: data.load("csqa", "test", params), lambda: survey("csqa", ["test"], few)):
        with pytest.raises(DataError) as raised:
            call()
        told = re.sub(r" \(first: line \d+\)", "", str(raised.value)).partition("csqa: ")[2]
        assert told == f"{counts} character; mend or delete them"


def test_odd_rows_and_missing_ones_are_counted(tmp_path):
    same = [("Same", "same. ", "other"), ("“on it”", "on  it", "other"), ("Tt", "TT", "tt", "!")]
    rows = [nested(9 + i, zip("ABCD", texts, strict=False), "CAA"[i]) for i, texts in enumerate(same)]
    params = write(tmp_path, "arc-challenge", [*ARC, *rows])
    (train,) = survey("arc-challenge", ["train"], params)
    expected = {"rows": 6, "official": 1119, "two equal options": 2, "right option twice": 1}
    assert train == {"file": "ARC-Challenge-Train.jsonl", **expected}


def test_the_dev_file_cannot_choose_and_test(tmp_path):
    params = write(tmp_path, "arc-challenge")
    chosen_by = data.load("arc-challenge", "validation", params)
    with pytest.raises(DataError, match="arc-challenge-dev: 3 of 3 test questions are also trained or"):
        data.check_overlap("arc-challenge-dev", chosen_by, data.load("arc-challenge-dev", "test", params))


OFFICIAL = {  # by file: its data set, those of its splits that are used, rows, right options that stand twice
    "train_rand_split.jsonl": ("csqa", "train validation", 9741, 42),
    "train.jsonl": ("qasc", "train validation", 8134, 20),
    "ARC-Challenge-Dev.jsonl": ("arc-challenge", "validation", 299, 0),
    "ARC-Easy-Train.jsonl": ("arc-easy", "train", 2251, 0),
    "./train.jsonl": ("quarel", "train", 1941, 0),
}


@pytest.mark.parametrize("file", OFFICIAL)
def test_official_files_hold_their_rows_or_the_missing_are_told(file):
    (name, used, official, twice), params = OFFICIAL[file], whole(TEST_DATA / "benchmarks")
    if not (TEST_DATA / "benchmarks" / BENCHMARKS[name]["folder"] / file).is_file():
        pytest.skip(f"{file} is not there; CFDISTILL_TEST_DATA names another folder")
    questions = [q for split in used.split() for q in data.load(name, split, params)]
    (told,) = survey(name, used.split(), params)
    assert len(questions) == len({q.id for q in questions}) == told["rows"]
    assert (official - told["rows"], told["right option twice"]) == (11 if name == "quarel" else 0, twice)


@pytest.mark.parametrize("data_seed", [0, 1])
def test_reading_holds_no_more_memory_for_more_rows(tmp_path, data_seed):
    params, peaks = Params(data_root=str(tmp_path), data_seed=data_seed, test_questions=5), []
    for count in (200, 4000):
        write(tmp_path, "user", [MINE | {"id": f"q{i}"} for i in range(count)])
        tracemalloc.start()
        assert len(data.load("user", "test", params)) == 5
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000  # bytes; 4000 questions held at once take millions


# The hub: local repositories, laid out as the hub's parquet conversions are
CHOICES = {"choices": {"label": ["A", "B", "C"], "text": ["one", "two", "three"]}, "answerKey": "B"}
HUB_ROWS = {
    "csqa": {"question": "Which?", "question_concept": "it", **CHOICES},
    "openbookqa": {"question_stem": "Which?", **CHOICES},
    "quarel": {"question": "Which? (A) one (B) two", "answer_index": 1, "world_literals": {"a": [""]}},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return parameters of a hub that holds nothing but folders under tmp_path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in (*HUB_ROWS, "qasc"):
        monkeypatch.setitem(BENCHMARKS[name], "hub", f"{tmp_path / name}@{'0' * 40}")
    return whole(tmp_path, data_source="hub")


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hub_gives_the_same_questions(tmp_path, hub, name):
    config = BENCHMARKS[name]["configuration"]
    place, split = tmp_path / name / (config or "data"), BENCHMARKS[name]["sources"]["test"][1]
    place.mkdir(parents=True)
    for part in LIMITS:
        hidden = {"answerKey": ""} if (name, part) == ("csqa", "test") else {}
        rows = [HUB_ROWS[name] | {"id": f"{part}{i}"} | hidden for i in range(40)]
        pandas.DataFrame(rows).to_parquet(place / f"{part}-00000-of-00001.parquet")
    if config:
        found = [{"split": part, "path": f"{config}/{part}-*"} for part in LIMITS]
        head = json.dumps({"configs": [{"config_name": config, "data_files": found}]})
        (place.parent / "README.md").write_text(f"---\n{head}\n---\n")
    tested = data.load(name, "test", hub)
    assert [q.id for q in tested] == [f"{split}{i}" for i in range(40)]
    assert (tested[0].stem, tested[0].options[tested[0].answer]) == ("Which?", "two")
    assert data.load(name, "train", hub) != data.load(name, "validation", hub)
    assert data.facts(name, hub)["hub"] == BENCHMARKS[name]["hub"]


def test_a_hub_that_gives_no_rows_is_one_sentence(tmp_path, hub, monkeypatch):
    (tmp_path / "qasc").mkdir()
    (tmp_path / "qasc" / "qasc.py").write_text("raise SystemExit('this is run')\n")
    (tmp_path / "csqa" / "data").mkdir(parents=True)
    pointer = tmp_path / "csqa" / "data" / "validation-00000-of-00001.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, told in (
        ("user", "questions of user come from files"),
        ("qasc", r"qasc cannot be loaded \(Dataset scripts are no longer supported"),
        ("csqa", r"csqa cannot be loaded \(.*; see docs/data.md"),
    ):
        with pytest.raises(DataError, match=told):
            data.load(name, "test", hub)
    load_dataset = Mock(side_effect=ConnectionError("no network\nat all"))
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"csqa cannot be loaded \(no network at all\)"):
        data.load("csqa", "test", hub)
    asked = {"split": "validation", "revision": "0" * 40}  # and no code of others
    load_dataset.assert_called_once_with(str(tmp_path / "csqa"), None, **asked)
