"""Scores of hand-worked answers, and agreement with each task's official metric on real answers."""

import collections
import json
import re
import string

import pytest

from tests.support.paths import OFFICIAL
from tsallis_rl.tasks import graders
from tsallis_rl.tasks.base import Example

needs_data = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the excerpts of the official releases are not there")


def gold(answer, *aliases):
    return Example("0", "", answer, aliases)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "substring", "bounded"),
    [
        ("5", "5", 1, 1, 1),
        (" 5 \n", "5", 1, 1, 1),
        ("It is 5.", "5", 0, 1, 1),
        ("5, I think", "5", 0, 1, 1),
        ("15.5", "5", 0, 1, 0),  # the known weakness of substring match
        ("5.5", "5", 0, 1, 0),
        ("1,500", "500", 0, 1, 0),
        ("500,000", "500", 0, 1, 0),
        ("5%", "5", 0, 1, 0),
        ("5 %", "5", 0, 1, 0),
        ("-5", "5", 0, 1, 0),
        ("-5", "-5", 1, 1, 1),
        ("5%", "5%", 1, 1, 1),
        ("Parisian", "Paris", 0, 1, 0),
        ("in Paris (France)", "Paris", 0, 1, 1),
        ("paris", "Paris", 0, 0, 0),
        ("U.S.", "U.S.", 1, 1, 1),
        ("", "5", 0, 0, 0),
    ],
)
def test_string_matches(prediction, answer, exact, substring, bounded):
    expected = {"exact": exact, "substring": substring, "substring_bounded": bounded}
    assert graders.match_grades(prediction, gold(answer)) == expected


@pytest.mark.parametrize(
    ("prediction", "exe_ans", "right"),
    [
        ("0.34719", "0.34719", 1),
        ("34.7%", "0.34719", 1),
        ("34.7 percent", "0.34719", 1),
        ("0.35", "0.34719", 1),
        ("34.7", "0.34719", 0),  # a fraction is not so many units
        ("0.3471", "0.34719", 1),  # cut rather than rounded
        ("0.3470", "0.34719", 0),
        ("0.3", "0.34719", 0),  # rounded too far: 14% off
        ("-34.7%", "0.34719", 0),
        ("3.8%", "3.8", 1),  # exe_ans in percent already
        ("0.038", "3.8", 0),
        ("$ 1,234.5", "1234.5", 1),
        ("1234.5 dollars", "1234.5", 1),
        ("1,234", "1234.5", 1),
        ("1,236", "1234.5", 0),
        ("$ 386.8 million", "386.8", 1),
        ("$ 386.8 million", "386800000", 1),
        ("(23158)", "-23158", 1),
        ("-23158", "-23158", 1),
        ("−23158", "-23158", 1),
        ("- 23158", "-23158", 1),
        ("23158", "-23158", 0),
        ("$ -23158", "-23158", 1),
        ("1.2e6", "1200000", 1),
        ("0", "0", 1),
        ("0.00", "0", 1),
        ("1", "0", 0),
        ("0.00001", "0.00001", 1),
        ("yes", "yes", 1),
        ("Yes.", "yes", 1),
        ("no", "yes", 0),
        ("1", "yes", 0),
        ("yes", "1", 0),
        ("between 3 and 4", "3", 0),  # two numbers are no answer
        ("the answer is 407", "407", 1),
        ("", "407", 0),
        ("none", "407", 0),
    ],
)
def test_execution_accuracy(prediction, exe_ans, right):
    assert graders.execution_accuracy(prediction, exe_ans) == right


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "f1"),
    [
        ("The Beatles!", "beatles", 1, 1),
        ("John Lennon", "Lennon", 0, 2 / 3),
        ("Paul and John Lennon", "John Lennon", 0, 2 / 3),
        ("yes, it is", "yes", 0, 0),  # no part of a score where an answer is yes or no
        ("Yes", "yes", 1, 1),
        ("no", "no way", 0, 0),
        ("Ringo", "John Lennon", 0, 0),
        ("a the", "an", 1, 0),  # both normalise to nothing
    ],
)
def test_hotpotqa_answer_scores(prediction, answer, em, f1):
    scores = graders.hotpotqa(prediction, gold(answer))
    assert (scores["em"], scores["f1"]) == (em, pytest.approx(f1))


@pytest.mark.parametrize(
    ("prediction", "aliases", "em", "f1"),
    [
        ("G. Stanley Hall", (), 1, 1),
        ("Stanley Hall", (), 0, 0.8),
        ("Stanley Hall", ("Stanley Hall",), 1, 1),
        ("Granville Hall", ("Granville Stanley Hall",), 0, 0.8),
        ("yes", (), 0, 0),
        ("", (), 0, 0),
    ],
)
def test_musique_answer_scores_take_the_best_alias(prediction, aliases, em, f1):
    scores = graders.musique(prediction, gold("G. Stanley Hall", *aliases))
    assert (scores["em"], scores["f1"]) == (em, pytest.approx(f1))


def test_musique_gives_a_full_score_where_prediction_and_gold_are_both_empty():
    assert graders.musique("the", gold("an"))["f1"] == 1


@pytest.mark.parametrize(("text", "key"), [("$ 1,234.50", "2469/2"), (" 34.7 %", "347/1000"), ("Yes", "yes")])
def test_votes_for_one_number_are_counted_together(text, key):
    assert graders.number_key(text) == key


# The official definitions, written down once more from their descriptions.


def words(text):
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return [word for word in re.split(r"\s+", re.sub(r"\b(?:a|an|the)\b", " ", kept)) if word]


def official_f1(predicted, wanted):
    left = list(wanted)
    common = 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def questions(task):
    if task == "hotpotqa":
        files = ["hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"]
        records = [r for file in files for r in json.loads((OFFICIAL / task / file).read_text())]
        return [Example(r["_id"], r["question"], r["answer"]) for r in records]
    lines = [
        line for split in ("train", "dev") for line in (OFFICIAL / task / f"musique_ans_v1.0_{split}.jsonl").open()
    ]
    return [Example(r["id"], r["question"], r["answer"], tuple(r["answer_aliases"])) for r in map(json.loads, lines)]


def predictions(examples, i):
    """What a model might say to question i: its gold, variants of it, another's gold, the question itself."""
    answer = examples[i].answer
    return [
        answer,
        f"The {answer.upper()}.",
        f"{answer} of {examples[i - 1].answer}",
        " ".join(answer.split()[1:]),
        examples[i - 1].answer,
        examples[i].prompt,
        "yes",
        "",
    ]


@needs_data
@pytest.mark.parametrize("task", ["hotpotqa", "musique"])
def test_em_and_f1_are_the_official_ones_on_every_record(task):
    examples = questions(task)
    assert len(examples) == 300
    seen = collections.Counter()
    for i, example in enumerate(examples):
        for prediction in predictions(examples, i):
            scores = getattr(graders, task)(prediction, example)
            said, best = words(prediction), [0.0, 0.0]
            for answer in (example.answer, *example.aliases):
                wanted = words(answer)
                if task == "musique":
                    f1 = official_f1(said, wanted) if said and wanted else float(said == wanted)
                else:
                    closed = any(side in (["yes"], ["no"], ["noanswer"]) for side in (said, wanted))
                    f1 = 0.0 if closed and said != wanted else official_f1(said, wanted)
                best = [max(best[0], float(said == wanted)), max(best[1], f1)]
            assert [scores["em"], scores["f1"]] == pytest.approx(best)
            seen[scores["em"], round(scores["f1"], 1)] += 1
        own = getattr(graders, task)(example.answer, example)
        assert set(own.values()) == {1.0}
    assert len(seen) > 5  # the predictions do reach partial scores
