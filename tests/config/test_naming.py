"""Names of runs by what they train: in their opening lines, the report, the model card and their folder."""

import pytest

from configs import hops
from tsallis_rl.config.naming import commitment_text, default_workdir, estimator_text
from tsallis_rl.objectives import followed_commitment

FLOOR = {"commitment": "floor", "tau": 0.0067379}


@pytest.mark.parametrize(
    ("section", "followed", "text"),
    [
        ({}, {"q": 0.75}, "q = 0.75"),
        ({"schedule": "linear", "q_end": 0.25}, {"q": 0.75}, "q = 0.75 → 0.25 (linear)"),
        (FLOOR, FLOOR, "floor τ = 0.0067379"),
        ({"name": "paft", **FLOOR}, FLOOR, "floor τ = 0.0067379"),
        ({"name": "iwae"}, {"q": 1.0}, "q = 1"),
        ({"name": "hard_continuum"}, {"q": 0.75}, "q = 0.75"),
        ({"name": "grpo"}, {}, ""),
        ({"name": "grpo", **FLOOR}, {}, ""),  # which another estimator of the gradient comparison reads
        ({"name": "from_elsewhere"}, {}, ""),
        ({"name": "not_there.own"}, {}, ""),
        ({"name": "not_there.own", **FLOOR}, FLOOR, "floor τ = 0.0067379"),
    ],
)
def test_a_commitment_is_named_where_the_estimator_reads_it(section, followed, text):
    settings = hops.get_config().estimator.to_dict() | section
    assert followed_commitment(settings) == followed
    assert commitment_text(settings) == text


def test_the_q_of_an_estimator_that_is_not_loaded_is_the_one_that_its_run_logged():
    settings = hops.get_config().estimator.to_dict() | {"name": "not_there.own"}
    assert commitment_text(settings, logged_q=0.5) == "q = 0.5"
    assert commitment_text(settings | {"name": "grpo"}, logged_q=0.5) == ""


def test_an_estimator_of_ones_own_is_named_with_its_options():
    settings = hops.get_config().estimator.to_dict() | {"temperature": 2.0, "how": "all"}
    assert estimator_text(settings | {"name": "not_there.own"}) == "not_there.own(temperature=2.0, how=all)"
    assert estimator_text(settings) == "garl"


@pytest.mark.parametrize(
    ("argument", "named"),
    [("q=0.5", "garl-q0.5"), ("tau=0.05", "garl-floor0.05"), ("estimator=grpo", "grpo"), ("estimator=em", "em-q1")],
)
def test_a_folder_is_named_by_what_its_run_trains(argument, named):
    assert default_workdir(hops.get_config(argument)).startswith(f"runs/hops-cold-{named}-")
