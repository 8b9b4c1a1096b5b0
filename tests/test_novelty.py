from dataclasses import replace

from cfdistill.evaluate.novelty import STEPS, novelty
from cfdistill.schema import Question

SHOWN = Question("a", "own", "train", "The cook rang. Who?", ("Anna", "Bob"), 0, scene="s1", cue="the cook")


def test_every_question_has_the_first_step_that_is_new():
    asked = {
        "cue": replace(SHOWN, id="1", stem="It was the cook. Who was it?"),
        "answer": replace(
            SHOWN, id="2", stem="The chef rang. Who?", cue="the chef", options=("Bob", "anna"), answer=1
        ),
        "cause": replace(SHOWN, id="3", stem="The pilot rang. Who?", cue="the pilot", answer=1),
        "scene": replace(SHOWN, id="4", scene="s2"),
        "format": replace(SHOWN, id="5", dataset="other"),
        "": replace(SHOWN, id="6", scene="", cue=""),
    }
    found = novelty(asked.values(), [SHOWN, replace(SHOWN, id="b", scene="s3")])
    assert [found[q.dataset, q.id] for q in asked.values()] == list(asked)
    assert tuple(asked)[:-1] == STEPS


def test_a_cue_counts_only_with_its_own_answer():
    rewritten = replace(SHOWN, id="cf", answer=1)  # the same words, another answer
    asked = replace(SHOWN, id="1", answer=0)
    assert novelty([asked], [rewritten])["own", "1"] == "cause"
