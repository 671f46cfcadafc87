"""Which example of a step's batch --example means."""

import pytest

from tsallis_rl.runs.errors import UserError
from tsallis_rl.training.regeneration import position

IDS = ["7", "AMT/2012", "1", "twice", "twice", "\x1b[2J"]


@pytest.mark.parametrize(
    ("example", "place"),
    [("AMT/2012", 1), ("7", 0), ("1", 2), ("3", 3), (1, 1), (0, 0), ("\x1b[2J", 5), (r"\x1b[2J", 5)],
)  # fmt: skip
def test_an_example_is_found_by_the_id_that_its_page_shows_or_else_by_its_place(example, place, capsys):
    assert position(IDS, example, 3) == place
    told = "--example=3: step 3 trained on no example of this id; at place 3 of its batch is twice\n"
    assert capsys.readouterr().err == (told if example == "3" else "")


@pytest.mark.parametrize(
    ("example", "told"),
    [
        (
            "AMT/2013",
            "--example=AMT/2013: step 3 trained on 7, AMT/2012, 1, twice, …; give one of its ids, as the page",
        ),
        ("6", "or a place from 0 to 5"),
        (-1, "--example=-1: step 3 trained on"),
        ("", "--example=: step 3 trained on"),
        ("twice", "--example=twice: step 3 trained on it 2 times; give its place from 0 to 5"),
    ],
)
def test_an_example_that_the_step_did_not_train_on_is_named_with_those_that_it_did(example, told):
    with pytest.raises(UserError) as error:
        position(IDS, example, 3)
    assert told in str(error.value)
