"""The table of settings: default, limits or choices, meaning and readers of every field, in one place.

The base config, the checks (`check_fields`, `config.readers`) and the listing (`config.listing`) are derived from it.
"""

import dataclasses
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError, shortened


@dataclasses.dataclass(frozen=True)
class Limit:
    """Numbers from `least` to `most`.

    Attributes:
      least: the least number that is accepted.
      most: the largest.
      above: `least` itself is refused.
      below: `most` itself is refused.
      refusal: the message after config.FIELD=VALUE for another number; empty: the range.
    """

    least: float
    most: float = 1e300
    above: bool = False
    below: bool = False
    refusal: str = ""

    def accepts(self, value: float) -> bool:
        """Returns whether the number is accepted; NaN is not."""
        enough = value > self.least if self.above else value >= self.least
        return enough and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        least, most = (f"{x:g}" if isinstance(x, float) else str(x) for x in (self.least, self.most))
        if not self.above and not self.below:
            return f"from {least} to {most}"
        return f"{'above' if self.above else 'from'} {least}, {'below' if self.below else 'at most'} {most}"


class When(NamedTuple):
    """The condition on which a setting is read.

    Attributes:
      field: section.field of another setting.
      values: the values of that setting with which this one is read.
    """

    field: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      default: its value in `base_config`; other values must have its type. For a field of a task, the value that the
        package's config files begin with, or None if each task has its own.
      meaning: one line for people.
      limit: which numbers are accepted.
      choices: which values are accepted; empty: any.
      when: the condition on which the setting is read; None: always.
      tasks: the tasks that read it, for a field that only they have.
    """

    default: Any
    meaning: str
    limit: Limit | None = None
    choices: tuple[str, ...] = ()
    when: When | None = None
    tasks: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises UserError for a value outside limit or choices, of another type, or bad text; `name` is its field."""
        text = value if isinstance(value, str) else ""
        if "\0" in text:
            raise UserError(f"config.{name}={value!a:.60} holds a NUL character, which no command line takes")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"config.{name}={value!a:.60} holds half of a surrogate pair; write it again") from None
        if self.limit and not (isinstance(value, int | float) and self.limit.accepts(value)):
            raise UserError(f"config.{name}={_told(value)}" + (self.limit.refusal or f": choose a number {self.limit}"))
        if self.choices and value not in self.choices:
            raise UserError(f"config.{name}={value!r}: choose from {', '.join(self.choices)}")
        if not self.has_type(value):
            kind = _KINDS.get(type(self.default), "text")
            raise UserError(f"config.{name}={_told(value)} is of type {type(value).__name__}; give {kind}")

    def has_type(self, value: Any) -> bool:
        """Returns whether a value has the type of the default, text if that is None; True and False are no numbers."""
        default = str if self.default is None else type(self.default)
        kind: Any = {float: (int, float), tuple: (list, tuple)}.get(default, default)
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _told(value: Any) -> str:
    """Formats a value for a message; Python itself refuses to print whole numbers of thousands of digits."""
    try:
        return shortened(str(value))
    except ValueError:
        return "(thousands of digits)"


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a tuple of names"}
SOME = Limit(1, 2**31 - 1)
ANY = Limit(0, 2**31 - 1)
NOT_NEGATIVE = Limit(0.0)
POSITIVE = Limit(0.0, above=True)  # 0 would mean division by zero, no gradient, or no token that may be sampled
SHARE = Limit(0.0, 1.0)
DECAY = Limit(0.0, 1.0, below=True)
COMMITMENT = Limit(
    0.0, 1.0,
    refusal=" is outside [0, 1], which runs from the success probability (0) to its logarithm (1)",
)  # fmt: skip
LABELS = Limit(0.0, 1.0, refusal=": choose a share of the training labels, from 0 to 1")

_ADAM = When("optimizer.name", ("adamw",))
_POWER = When("estimator.commitment", ("power",))
_BY_TAU = When("estimator.commitment", ("floor", "mixture"))
_OVER_STEPS = When("estimator.schedule", ("step", "linear", "cosine"))
_BY_STD = When("estimator.scale_rewards", ("std",))
_HINTED = When("proposal.name", ("hinted", "mixture"))
_AVERAGE = When("regularizer.reference", ("average",))
_HAS_COLD = When("task.start", ("cold", "mixed"))

SECTIONS = {
    "task": "the question-answer pairs",
    "model": "the decoder",
    "base": "supervised training from scratch, before adaptation; for tasks with rationales of their own (hops)",
    "rollouts": "how rationales are sampled",
    "proposal": "the distribution that training draws rationales from; evaluations use the plain prompt",
    "estimator": "a row of tsallis_rl.objectives.ESTIMATORS, or yours, with the options that it declares",
    "regularizer": "rewards added to any estimator's own, in its score coefficients, without the factor 1/M^q",
    # Users' configs, commands and metrics have this name, so it stays; the code says gradient comparison.
    "shadow": "gradient comparison: other estimators' gradients on the same rollouts, measured but not used",
    "optimizer": "from gradient to update",
    "mesh": "devices along each axis",
    "train": "steps and their batches",
    "guards": "what stops a run, or changes it, when it goes wrong",
    "evaluate": "evaluations on validation, each with a checkpoint, and how answers are sampled there",
    "log": "where else metrics.jsonl and rollouts are sent; may change whenever a run is continued",
}

FIELDS: dict[str, Field] = {
    "seed": Field(0, "seed of data order, sampling and the tasks' own draws", ANY),
    "task.name": Field("", "a task of tsallis_rl.tasks, or the dotted name of your own module"),
    "task.start": Field(
        "cold", "cold: the bare record; chat: in the chat template; warm: chat with an instruction; hops has mixed"
    ),
    "task.end_of_think": Field(
        "auto", "token or text that closes a rationale; auto: the model's </think>, or else \"Final answer:\""
    ),
    "task.joint": Field("auto", "text forced before the answer; auto: depends on start and end_of_think, see --show"),
    "task.think_prefix": Field("", "text after the prompt with which every rationale begins; read, but not scored"),
    "task.end_of_answer": Field(
        "auto", "token scored after the gold answer; auto: the chat template's, in a cold start the tokeniser's"
    ),
    "task.metric": Field(
        "auto", "grade that pass@k and maj@k count as correct at 1, or MODULE.FUNCTION of yours; auto: the task's own"
    ),
    "task.reward": Field(
        "auto", "grade that estimators of sampled answers train on, or MODULE.FUNCTION of yours; auto: exact"
    ),
    "task.max_prompt": Field(
        1024, "tokens; longer prompts are dropped and counted. Reduced where the model's context needs it", SOME
    ),
    "task.max_answer": Field(128, "tokens, end-of-sequence included", SOME),
    "task.train_examples": Field(0, "size of a deterministic subset; 0 = all", ANY),
    "task.validation_examples": Field(0, "size of a deterministic subset; 0 = all", ANY),
    "task.test_examples": Field(0, "size of a deterministic subset; 0 = all", ANY),
    "task.label_noise": Field(0.0, "share of the training examples that get another example's answer", LABELS),
    "model.size": Field(
        "tiny", "a row of tsallis_rl.models.SIZES, a pretrained model's folder, or owner/name[@revision] of the hub"
    ),
    "model.dtype": Field(
        "float32", "type of the computation; trained parameters stay float32",
        choices=("float32", "bfloat16", "float16"),
    ),
    "model.remat": Field(
        "auto",
        "what the backward pass recomputes: none; matmuls: all between matrix products; attention: all but attention; "
        "layers: all; auto: one of the last three, by memory, and none on CPUs",
        choices=("auto", "none", "matmuls", "attention", "layers"),
    ),
    "model.attention": Field(
        "auto",
        "library: a kernel wherever it accepts the arrays; auto: only where it measured faster; xla: never",
        choices=("auto", "library", "xla"),
    ),
    "model.lora_rank": Field(0, "rank of the projections' adapters, which alone are trained; 0: train all", ANY),
    "model.lora_alpha": Field(32.0, "adapters are multiplied by lora_alpha / lora_rank", POSITIVE),
    "model.lora_targets": Field(
        (), "projections that have adapters, by their names in peft, as in ('q_proj', 'v_proj'); () = all seven"
    ),
    "model.adapter": Field(
        "", "folder of a peft LoRA adapter to start from, with its own rank, alpha and targets; empty: none"
    ),
    "base.seed": Field(0, "seed of the base model, not config.seed, so that runs over seeds share one model", ANY),
    "base.steps": Field(0, "supervised steps; 0 = none", ANY),
    "base.batch": Field(128, "examples a step", SOME),
    "base.learning_rate": Field(3e-3, "peak learning rate of AdamW", NOT_NEGATIVE),
    "rollouts.num_rollouts": Field(32, "M, rollouts a prompt", SOME),
    "rollouts.max_rationale": Field(
        512, "tokens; then end-of-think is forced. Reduced where the context needs it", SOME
    ),
    "rollouts.min_rationale": Field(0, "tokens before which neither end-of-think nor a stop id can be sampled", ANY),
    "rollouts.prompt_widths": Field(
        8, "most widths that prompts are padded to; each is compiled once. Changes speed, not rollouts", SOME
    ),
    "rollouts.at_once": Field(
        0, "prompts rolled out at a time; 0 = as many as fit by --plan's count, on CPUs all. Changes only rounding", ANY
    ),
    "rollouts.temperature": Field(
        1.0, "values other than 1 leave the theory (docs/method.md §4), as truncation by the next three does",
        NOT_NEGATIVE,
    ),
    "rollouts.top_k": Field(0, "sample among the k likeliest tokens; 0 = all", ANY),
    "rollouts.top_p": Field(
        1.0, "sample among the likeliest tokens of this total probability", Limit(0.0, 1.0, above=True)
    ),
    "rollouts.min_p": Field(
        0.0, "sample among tokens with at least this share of the likeliest one's probability", SHARE
    ),
    "rollouts.unclosed": Field(
        "drop", "at an end of sequence inside a rationale: drop its answer (w = 0), or close the rationale",
        choices=("drop", "close"),
    ),
    "rollouts.aliases": Field(
        False, "w sums over the gold answer and the example's aliases, a forward pass each; evaluations: gold alone"
    ),
    "rollouts.answer_needs_end": Field(
        True, "a sampled answer without its end, or with special tokens before, earns 0; log w scores the end, too"
    ),
    "proposal.name": Field(
        "prior",
        "prior: the model after the plain prompt; hinted: after one with the answer, reweighed; mixture: half of each",
        choices=("prior", "hinted", "mixture"),
    ),
    "proposal.template": Field(
        "auto", "the hinted prompt, with {prompt} and {answer}; auto: the task's own, or a general one", when=_HINTED
    ),
    "estimator.name": Field("garl", "a row of ESTIMATORS, or MODULE.NAME of an Estimator of yours"),
    "estimator.commitment": Field(
        "power", "f(P), the factor on ∇ log P: power P^(1−q), floor max(P, τ), mixture P + τ (docs/method.md §8)",
        choices=("power", "floor", "mixture"),
    ),
    "estimator.q": Field(0.75, "q of commitment=power; a schedule starts from it", COMMITMENT, when=_POWER),
    # The least is above what float32 rounds to 0, which would be q = 0.
    "estimator.tau": Field(0.05, "τ of commitment=floor and mixture", Limit(1e-30, 1.0), when=_BY_TAU),
    "estimator.normalize": Field(True, "the factor 1/M^q of Algorithms 1 and 2", when=_POWER),
    "estimator.baseline": Field("loo", "leave-one-out, or none", choices=("loo", "none")),
    "estimator.correction": Field(
        "none", "jackknife corrects the plug-in's O(1/M) bias", choices=("none", "jackknife")
    ),
    "estimator.path_weight": Field(1.0, "factor of the path coefficient; 0 trains the rationale alone", NOT_NEGATIVE),
    "estimator.num_draws": Field(0, "draws among the M rollouts; 0 = M", ANY),
    "estimator.resampling": Field(
        "categorical", "how these draws are made", choices=("categorical", "systematic", "residual")
    ),
    "estimator.epsilon": Field(1e-4, "added to the standard deviation of a group's rewards", POSITIVE, when=_BY_STD),
    "estimator.scale_rewards": Field(
        "std", "std: divide a group's centred rewards by their standard deviation; none: GRPO becomes dr_grpo",
        choices=("std", "none"),
    ),
    "estimator.length_norm": Field(
        "none", "rollout: divide by its tokens, as in the published GRPO; group: by its group's mean, as in DAPO",
        choices=("none", "rollout", "group"),
    ),
    "estimator.kl": Field(0.05, "factor of LaTRO's KL to config.regularizer.reference", NOT_NEGATIVE),
    "estimator.std_share": Field(
        0.5, "RLPR leaves out a group whose rewards' deviation is below this share of the usual one", NOT_NEGATIVE
    ),
    "estimator.k": Field(4, "k of the pass@k that PKPO maximises, at most config.rollouts.num_rollouts", SOME),
    "estimator.schedule": Field(
        "constant", "how q moves over steps", choices=("constant", "step", "linear", "cosine"), when=_POWER,
    ),
    "estimator.q_end": Field(0.0, "q at the schedule's end", COMMITMENT, when=_OVER_STEPS),
    "estimator.schedule_steps": Field(100, "steps from q to q_end", SOME, when=_OVER_STEPS),
    "regularizer.kl": Field(0.0, "factor of the KL to a reference, nats a rollout; 0 = off", NOT_NEGATIVE),
    "regularizer.reference": Field(
        "start", "start: the parameters before the first step; average: a moving average of the run's; for LaTRO, too",
        choices=("start", "average"),
    ),
    "regularizer.decay": Field(0.99, "decay of that average, a step", DECAY, when=_AVERAGE),
    "regularizer.entropy": Field(0.0, "factor of the bonus −log p of a rationale; 0 = off", NOT_NEGATIVE),
    "regularizer.length": Field(0.0, "factor of the penalty max(0, 1 − |z|/min_length); 0 = off", NOT_NEGATIVE),
    "regularizer.min_length": Field(
        0, "a rationale of this many sampled tokens, with end-of-think if sampled, has no penalty", ANY
    ),
    "shadow.every": Field(0, "steps between measurements; 0 = none", ANY),
    "shadow.estimators": Field(
        ("garl@0", "garl@0.25", "garl@0.5", "garl@0.75", "garl@1", "paft@0.75", "paft@1"), "those compared, as NAME@Q"
    ),
    "shadow.reference_rollouts": Field(
        512, "rollouts a prompt in the reference gradient; a multiple of num_rollouts", SOME
    ),
    "optimizer.name": Field("adamw", "adamw, or sgd with b1 for momentum", choices=("adamw", "sgd")),
    "optimizer.learning_rate": Field(1e-3, "the peak learning rate", NOT_NEGATIVE),
    "optimizer.schedule": Field(
        "constant", "constant, or cosine to zero after train.steps updates", choices=("constant", "cosine")
    ),
    "optimizer.warmup_steps": Field(
        0, "steps before the peak, at rates that rise evenly and are never 0; fewer than train.steps", ANY
    ),
    "optimizer.b1": Field(0.9, "decay of the mean gradient", DECAY),
    "optimizer.b2": Field(0.999, "decay of the mean squared gradient", DECAY, when=_ADAM),
    "optimizer.eps": Field(1e-8, "decides which gradients are too small to count", POSITIVE, when=_ADAM),
    "optimizer.weight_decay": Field(0.0, "decoupled decay of all trained parameters, also of norms", NOT_NEGATIVE),
    "optimizer.clip": Field(1.0, "largest global gradient norm", POSITIVE),
    "mesh.data": Field(0, "devices that prompts are split over; 0 takes those that the other axes leave", ANY),
    "mesh.fsdp": Field(1, "devices that prompts and parameters are split over", SOME),
    "mesh.tensor": Field(1, "devices that heads, feed-forward width and vocabulary are split over", SOME),
    "train.steps": Field(150, "training steps; the one setting that may grow in a run's folder, to continue it", SOME),
    "train.init": Field(
        "", "start from another run's parameters: RUN (its best step), RUN:latest or RUN:STEP; empty: from the model"
    ),
    "train.prompts": Field(16, "P, prompts a step", SOME),
    "train.refill": Field(
        0, "further batches that may replace groups without signal: up to 1 + refill times the rollouts; 0 = off", ANY
    ),
    "train.length_window": Field(
        64, "batches whose prompts are sorted by length together, if there are several prompt_widths; 0 = never", ANY
    ),
    "train.micro_batch": Field(
        0, "prompts in a backward pass; 0 = as many as fit by --plan's count, on CPUs all. Changes only rounding", ANY
    ),
    "train.micro_rollouts": Field(0, "most rollouts of a prompt in a backward pass; 0: as for micro_batch", ANY),
    "train.save_rollouts_every": Field(50, "steps between files in rollouts/; 0 = none", ANY),
    "train.save_rollouts_prompts": Field(4, "prompts in each such file", SOME),
    "train.keep_checkpoints": Field(1, "how many of the latest checkpoints are kept, besides the best one", SOME),
    "guards.max_skipped": Field(10, "stop after this many updates in a row that were not finite", SOME),
    "guards.collapse_share": Field(
        0.5, "validation maj@k, or the closed share, may lose this share of its best; 1 = all", SHARE
    ),
    "guards.vanished_share": Field(
        0.25, "warn when unique rationales, or their length, fall to this share of the start's; 0 = off", SHARE
    ),
    "guards.on_collapse": Field(
        "say", "say: only warn; best: go back to the best checkpoint; paft: turn GARL into PAFT; lower_q: halve q",
        choices=("say", "best", "paft", "lower_q"),
    ),
    "evaluate.every": Field(25, "steps between evaluations", SOME),
    "evaluate.samples": Field(16, "sampled answers a prompt", SOME),
    "evaluate.prompts": Field(64, "prompts rolled out at a time", SOME),
    "evaluate.examples": Field(0, "size of a deterministic subset of validation; 0 = all", ANY),
    "evaluate.temperature": Field(1.0, "temperature of evaluations; training has rollouts.temperature", NOT_NEGATIVE),
    "evaluate.top_k": Field(0, "evaluations sample among the k likeliest tokens; 0 = all", ANY),
    "evaluate.top_p": Field(
        1.0, "evaluations sample among the likeliest tokens of this total probability", Limit(0.0, 1.0, above=True)
    ),
    "evaluate.greedy": Field(False, "evaluations take the likeliest token each time; with samples = 1"),
    "evaluate.rationale": Field(
        "auto", "the rationale before an answer: sampled, none, or auto: whichever the estimator trains with",
        choices=("auto", "sampled", "none"),
    ),
    "evaluate.kl": Field(
        False, "measure the KL to the run's start, which is held in memory; measured anyway if regularizer.kl uses it"
    ),
    "evaluate.save_prompts": Field(
        8, "validation examples whose sampled answers are kept as text in evaluations/; 0 = none", ANY
    ),
    "log.to": Field((), "loggers, as in ('tensorboard',): tensorboard, trackio, wandb, or MODULE.CLASS of yours"),
    "log.project": Field("tsallis_rl", "name of the project in these loggers"),
    "log.run": Field("", "name of the run in these loggers; empty: that of its folder"),
    "log.tags": Field((), "tags of the run in these loggers"),
}  # fmt: skip

_PAPER = ("finqa", "hotpotqa", "musique")

TASK_FIELDS: dict[str, Field] = {
    "task.folder": Field("", "folder of the official files; empty: where --download puts them", tasks=_PAPER),
    "task.prompt_overflow": Field(
        "drop", "prompts that are too long: drop them, or trim the last passages that are not evidence",
        choices=("drop", "trim"), tasks=_PAPER,
    ),
    "task.gold": Field(
        "exe_ans", "the program's result, or the answer as annotators wrote it", choices=("exe_ans", "answer"),
        tasks=("finqa",),
    ),
    "task.path": Field(
        "", "a file of JSON, CSV or parquet, a folder with one per split, or hf:owner/name[:subset][@revision]",
        tasks=("jsonl",),
    ),
    "task.columns": Field(
        "", "columns with other names, as in question:prompt,solution:answer; also for aliases, id", tasks=("jsonl",)
    ),
    "task.answer_after": Field(
        "", "text after which the answer begins, such as GSM8K's ####; empty: all of it is the answer", tasks=("jsonl",)
    ),
    "task.train_split": Field("train", "name of the hub's split, or of the file in a folder", tasks=("jsonl",)),
    "task.validation_split": Field(
        "auto", "auto: validation, dev, valid or val; if empty, or if there is none: a tenth of training",
        tasks=("jsonl",),
    ),
    "task.test_split": Field(
        "auto", "auto: test; if empty, or if there is none: a tenth of training", tasks=("jsonl",)
    ),
    "task.tolerance": Field(0.0, "relative difference that the grade numeric accepts", NOT_NEGATIVE, tasks=("jsonl",)),
    "task.vocab_size": Field(
        4096, "ids of the tokeniser that is trained for a model without one", SOME, tasks=(*_PAPER, "jsonl")
    ),
    "task.cold_answer": Field(
        None, "the gold answer in a cold start, with {} for the entity", when=_HAS_COLD, tasks=("hops",)
    ),
    "task.shown": Field(
        0.0, "share of the base model's examples whose prompt shows the rationale's last entity, as hints do", SHARE,
        tasks=("hops",),
    ),
    "task.hint": Field(
        0.0, "share of the prompts whose printed hint is the answer; 0: no hints", SHARE, tasks=("hops",)
    ),
}  # fmt: skip


def base_config() -> ConfigDict:
    """Makes a config of all shared fields at their defaults; config files change what they need."""
    config = ConfigDict({section: ConfigDict() for section in SECTIONS})
    for name, field in FIELDS.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = field.default
    return config


def value_of(config: ConfigDict, name: str) -> Any:
    """Reads the value of "section.field"."""
    section, _, key = name.rpartition(".")
    return (config[section] if section else config)[key]


def task_fields(task: Any) -> dict[str, Field]:
    """Selects the rows that only the task of this name has: name → field."""
    return {name: field for name, field in TASK_FIELDS.items() if task in field.tasks}


def fields_of(config: ConfigDict) -> dict[str, Field]:
    """Selects the rows of the table that the config's task has: name → field."""
    own = task_fields(config.task.name)
    return FIELDS | {name: field for name, field in own.items() if name.partition(".")[2] in config.task}


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for the first field outside its limit or choices."""
    for name, field in fields_of(config).items():
        field.check(name, value_of(config, name))
