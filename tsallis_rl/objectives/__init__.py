"""Turns a group's log-weights or rewards into two coefficients per rollout (docs/method.md §3)."""

from tsallis_rl.objectives.commitments import COMMITMENTS, Commitment, floor_loss, make_commitment, mixture_loss
from tsallis_rl.objectives.diagnostics import below_eps, diagnostics
from tsallis_rl.objectives.form import Coefficients
from tsallis_rl.objectives.gold_rewards import garl_per_token, jepo, latro, nover, rlpr
from tsallis_rl.objectives.histories import HISTORIES
from tsallis_rl.objectives.likelihood import em, garl, iwae, log_likelihood, paft, rb_reinforce, rb_rloo, sft
from tsallis_rl.objectives.proposals import (
    PROPOSALS,
    check_proposal,
    first_hinted,
    log_importance,
    proposal_figures,
    restates_answer,
)
from tsallis_rl.objectives.regularizer import regularize, regularizer_terms
from tsallis_rl.objectives.resampling import RESAMPLING
from tsallis_rl.objectives.rewards import curverl, dr_grpo, grpo, hard_continuum, maxrl, pkpo, raft, rloo
from tsallis_rl.objectives.schedules import SCHEDULES, scheduled_q
from tsallis_rl.objectives.table import (
    ESTIMATORS,
    Estimator,
    coefficients,
    compared_estimators,
    estimator_at,
    followed_commitment,
    follows_q,
    samples_rationales,
)
from tsallis_rl.objectives.tsallis import log_q, tsallis_loss
from tsallis_rl.objectives.weigh import check, compiled_weigh, numbers, weigh

__all__ = [
    "COMMITMENTS",
    "ESTIMATORS",
    "HISTORIES",
    "PROPOSALS",
    "RESAMPLING",
    "SCHEDULES",
    "Coefficients",
    "Commitment",
    "Estimator",
    "below_eps",
    "check",
    "check_proposal",
    "coefficients",
    "compared_estimators",
    "compiled_weigh",
    "curverl",
    "diagnostics",
    "dr_grpo",
    "em",
    "estimator_at",
    "first_hinted",
    "floor_loss",
    "followed_commitment",
    "follows_q",
    "garl",
    "garl_per_token",
    "grpo",
    "hard_continuum",
    "iwae",
    "jepo",
    "latro",
    "log_importance",
    "log_likelihood",
    "log_q",
    "make_commitment",
    "maxrl",
    "mixture_loss",
    "nover",
    "numbers",
    "paft",
    "pkpo",
    "proposal_figures",
    "raft",
    "rb_reinforce",
    "rb_rloo",
    "regularize",
    "regularizer_terms",
    "restates_answer",
    "rloo",
    "rlpr",
    "samples_rationales",
    "scheduled_q",
    "sft",
    "tsallis_loss",
    "weigh",
]
