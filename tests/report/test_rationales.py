"""Whether rationales help: what the report concludes from figures written by hand."""

import json

import pytest

from configs import hops
from tsallis_rl.report.figures import draw
from tsallis_rl.report.page import write_page
from tsallis_rl.report.rationales import rationales
from tsallis_rl.report.runs import DONE, Run
from tsallis_rl.runs.run_directory import flatten


def make_run(folder, gains, seed=0, se=0.25, vanished=None, argument="", part="", spread=2.0):
    """A run of validation evaluations 10 steps apart with these gains; None is what was not finite."""
    config = flatten(hops.get_config(argument).to_dict()) | {"seed": seed}
    names = {"rationale_gain_se": se, "unique_rationales": 0.5, "rationale_length": 4.0, "log_p_hat": -2.0}
    names |= {"rationale_spread": spread, "rationale_helps": 0.9, "rationale_token_entropy": 1.5, "pass@1": 0.25}
    records = [
        {"step": 10 * i}
        | {f"eval/validation/{part}{name}": x for name, x in (names | {"rationale_gain": gain}).items()}
        for i, gain in enumerate(gains)
    ]
    records += [{"step": vanished, "guard/rationales_vanished": "they are gone"}] if vanished is not None else []
    return Run(folder / f"seed{seed}", DONE, config, records)


def said(runs) -> str:
    """The first sentence of the section."""
    return rationales(runs).partition("<li>")[2].partition("</li>")[0]


@pytest.mark.parametrize(
    ("gains", "se", "sentence"),
    [
        (((9.0, 3.0), (9.0, 2.0)), 0.5, "rationales help: at the last evaluation (step 10) answering after one gains "
         "2.50 nats of log p(gold) (2 seeds: 3.00 ± 0.98, 2.00 ± 0.98, 95% over prompts)."),
        (((9.0, 3.0), (9.0, 0.5)), 0.5, "cannot be said: at the last evaluation (step 10) answering after one gains "),
        (((9.0, -3.0),), 0.5, "rationales hurt: at the last evaluation (step 10) answering after one gains -3.00 nats"),
        (((9.0, -0.001), (9.0, 0.0)), 0.0, "rationales make no difference: at the last evaluation (step 10) answering "
         "after one gains 0.00 nats of log p(gold) (2 seeds: 0.00 ± 0.00, 0.00 ± 0.00"),
        (((9.0, 0.05),), 0.05, "cannot be said"),  # −0.05 to 0.15 nats
        (((9.0, 3.0), (9.0, None)), 0.5, "cannot be said: at the last evaluation (step 10) the gain is no number for 1 "
         "of 2 seeds; log P̂ is −∞ where no sampled rationale of a prompt closed (config.rollouts.unclosed)."),
        (((9.0, 3.0), (9.0, 4.0, 5.0)), 0.5, "rationales help: at the last evaluation (step 10 to 20) answering"),
        (((3.0,),), None, "cannot be said: at the last evaluation (step 0) answering after one gains 3.00 nats of log "
         "p(gold) (1 seed: 3.00 ± inf"),  # of one prompt
    ],
)  # fmt: skip
def test_every_seed_must_agree_and_what_cannot_be_said_is_said(tmp_path, gains, se, sentence):
    assert f"GARL q = 0.75: {sentence}" in said([make_run(tmp_path, x, i, se) for i, x in enumerate(gains)])


def test_rationales_that_differ_and_say_nothing_are_named(tmp_path):
    runs = [make_run(tmp_path, (9.0, 3.0), seed, spread=0.03 + 0.02 * seed) for seed in (0, 1)]
    assert said(runs).startswith(
        "GARL q = 0.75: what rationales say makes no difference: at the last evaluation (step 10) those of a prompt "
        "are different, and log p(gold) after them differs by 0.04 nats (standard deviation, mean over prompts and "
        "seeds). Answering after one gains 3.00 nats"
    )
    assert said(runs).endswith("95% over prompts): the model is not used to answering without one.")
    lost = [make_run(tmp_path, (9.0, -1.0), seed, spread=0.04) for seed in (3, 4)]
    assert said(lost).endswith("95% over prompts).")
    assert "rationales help" in said([*runs, make_run(tmp_path, (9.0, 3.0), 2)])  # one seed of three disagrees


def test_vanished_rationales_are_named_by_their_steps_and_compared_with_training_without_any(tmp_path):
    runs = [make_run(tmp_path, (2.0, 0.0), seed, 0.0, vanished) for seed, vanished in enumerate((10, None))]
    sft = Run(tmp_path / "sft", DONE, flatten(hops.get_config("estimator=sft").to_dict()), [
        {"step": i, "eval/validation/pass@1": x, "eval/validation/log_p_hat": -x} for i, x in ((0, 0.5), (9, 0.75))
    ])  # fmt: skip
    assert said(runs).endswith("They vanished at step 10 (1 of 2 seeds).")
    section = rationales([*runs, sft])
    for cells in (
        ["GARL q = 0.75", "2", "0.250 → 0.250", "-2.00 → -2.00"],
        ["0.90 → 0.90", "0.50 → 0.50", "2.00 → 2.00", "4.00 → 4.00"],
        ["1.50 → 1.50", "10, never"], ["SFT", "1", "0.500 → 0.750", "-0.50 → -0.75", "none are sampled", "–"],
    ):  # fmt: skip
        assert "".join(f"<td>{cell}</td>" for cell in cells) in section
    assert "<b>2.00 → 0.00</b><br><span class=note>0.00 ± 0.00, 0.00 ± 0.00</span>" in section
    assert section.count("<li>") == 1 and rationales([sft]) == ""


def test_a_mixed_start_answers_for_its_cold_half(tmp_path):
    run = make_run(tmp_path, (2.0, 3.0), argument="start=mixed", part="cold/")
    assert "gains 3.00 nats" in said([run])
    assert not said([make_run(tmp_path, (2.0, 3.0), argument="start=mixed")])


def test_rationales_of_the_same_examples_stand_side_by_side_and_older_runs_have_no_section(tmp_path):
    run = make_run(tmp_path, (2.0, 3.0))
    (run.folder / "evaluations").mkdir(parents=True)
    for step, examples in ((0, "ab"), (10, "bc")):
        rows = [{"example": x, "gold": "42", "rationale": f"<b>{x} at {step}"} for x in examples for _ in range(2)]
        file = run.folder / "evaluations" / f"validation_{step:06d}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = rationales([run])
    cells = ["GARL q = 0.75, steps 0 and 10", "b", "42", "&lt;b&gt;b at 0", "&lt;b&gt;b at 10"]
    assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in section and "a at 0" not in section
    older = Run(tmp_path / "older", DONE, run.config, [{"step": 0, "eval/validation/pass@1": 0.5}])
    pages = [write_page(tmp_path, runs, [], {}).read_text() for runs in ([run], [older])]
    assert ["Do rationales help here?" in page for page in pages] == [True, False]
    (drawn,) = draw([run], tmp_path, ["gain"])
    assert drawn.file.exists() and not draw([older], tmp_path, ["gain"])
