import json

import pytest

from cfdistill import data
from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.schema import Question

SIZES = {"train_questions": 6, "validation_questions": 3, "test_questions": 9}


def rows(start, count):
    numbers = range(start, start + count)
    return [{"id": f"q{i}", "stem": f"Which is {i}?", "options": ["a", "b"], "answer": 1} for i in numbers]


def user_files(folder, **others):
    """Write the files of data set `user`; None leaves one out."""
    (folder / "user").mkdir(parents=True, exist_ok=True)
    usual = {"train": rows(0, 20), "validation": rows(100, 20), "test": rows(200, 20)}
    for split, lines in (usual | others).items():
        if lines is not None:
            (folder / "user" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Params(data_root=str(folder), train_dataset="user", test_datasets=["user"], **SIZES)


def test_a_study_needs_all_of_what_it_trains_on_and_of_the_rest_the_tests():
    both = ("csqa", "weasel-science")
    found = [" ".join(data.splits(name, Params(train_dataset=own))) for own in both for name in both]
    every = "train validation id shift new"
    assert found == ["train validation test unused", "new", "test", every]
    params = Params(methods=["multi-view-more"], tested="development")
    assert data.splits("weasel-commonsense", params) == ("train", "validation", "more", "development")
    assert data.splits("weasel-science", params) == ("development",)


def test_what_is_only_tested_on_needs_no_other_files(tmp_path):
    params = user_files(tmp_path, train=None, validation=None)
    elsewhere = params.model_copy(update={"train_dataset": "weasel-commonsense"})
    assert len(data.load("user", "test", elsewhere)) == 9
    assert set(data.facts("user", elsewhere)["files"]) == {"test.jsonl"}
    (counted,) = data.benchmarks.survey("user", ["test"], elsewhere)
    assert (counted["rows"], counted["file"]) == (20, "test.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl is missing; put the official release files of user"):
        data.facts("user", params)


# What reaches the questions, and nothing else, is in the facts
CHANGES = {"data_seed": 1, "train_scenes": 50, "train_questions": 40, "validation_questions": 20, "seed": 1}
CHANGES |= {"new_questions": 20, "test_questions": 70, "spurious_rate": 0.5, "data_source": "hub"}
CHANGES |= {"data_root": "elsewhere"}


@pytest.mark.parametrize("trained", ["weasel-science", "weasel-commonsense"])
@pytest.mark.parametrize("changed", CHANGES)
def test_facts_differ_where_questions_do(trained, changed):
    name, before = "weasel-science", Params(train_dataset=trained)
    both = before, before.model_copy(update={changed: CHANGES[changed]})
    one, other = ([data.load(name, split, p) for split in data.splits(name, p)] for p in both)
    assert (data.facts(name, both[0]) != data.facts(name, both[1])) == (one != other)


def test_seed_0_takes_the_first_rows_and_others_draw_as_many(tmp_path):
    params = user_files(tmp_path)
    seeds = [params.model_copy(update={"data_seed": seed}) for seed in range(4)]
    numbers = [tuple(int(q.id[1:]) for q in data.load("user", "test", seed)) for seed in seeds]
    assert numbers[0] == tuple(range(200, 209))
    assert len(set(numbers)) == 4
    assert all(drawn == tuple(sorted(set(drawn))) and len(drawn) == 9 for drawn in numbers)


def test_empty_and_repeated_and_unknown_are_one_sentence(tmp_path):
    for split, lines, said in (
        ("test", [], "split 'test' is empty"),
        ("test", rows(0, 2) + rows(1, 1), "split 'test' holds a question id twice"),
        ("tset", rows(0, 2), "has no split 'tset'; it has train, validation, test"),
    ):
        with pytest.raises(DataError, match=said):
            data.load("user", split, user_files(tmp_path, test=lines))
    for answer in (-1, 3):
        with pytest.raises(DataError, match="needs 2 to 10 options and an answer among them"):
            Question("q", "d", "train", "?", ("a", "b", "c"), answer)


def test_overlap_is_counted_by_text_and_refused_above_a_share(tmp_path):
    def overlap(*test):
        params = user_files(tmp_path, test=test)
        trained = [q for split in ("train", "validation") for q in data.load("user", split, params)]
        return data.check_overlap("user", trained, data.load("user", "test", params))

    assert overlap(*rows(200, 9)) == []
    again = {"id": "again", "stem": "which  IS ３?", "options": ["B", "a"], "answer": 0}
    assert overlap(again, *rows(200, 8)) == ["again"]
    with pytest.raises(DataError, match=r"user: 3 of 9 test questions are also trained .* \(and 0 "):
        overlap(*rows(0, 3), *rows(200, 6))
    with pytest.raises(DataError, match="1 of 3 validation questions tested on"):  # 1 of 9 of the test
        overlap(*rows(102, 1), *rows(200, 8))
