"""The settings every experiment starts from, and the `key=value` arguments of config files."""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError


def base_config() -> ConfigDict:
    """Every field that all experiments share, with its default; config files change what they need."""
    config = ConfigDict()
    config.seed = 0

    config.task = ConfigDict()
    config.task.name = ""
    config.task.start = "cold"  # cold: the bare record; warm: with instructions
    config.task.max_prompt = 1024  # tokens; longer prompts are dropped and counted
    config.task.max_answer = 128  # tokens, end-of-sequence included
    config.task.train_examples = 0  # a deterministic subset of this size; 0 = all
    config.task.validation_examples = 0
    config.task.test_examples = 0
    config.task.label_noise = 0.0  # share of the training examples whose answer is another example's

    config.model = ConfigDict()
    config.model.size = "tiny"  # a row of tsallis_rl.models.sizes, or the folder of a pretrained model
    config.model.dtype = "float32"  # of the computation; the parameters that are trained stay float32
    config.model.remat = "none"  # recomputed in the backward pass: none; matmuls: all between products; layers: all
    config.model.attention = "auto"  # a library's kernel on TPU and GPU where it fits (docs/performance.md); or xla
    config.model.lora_rank = 0  # of adapters beside every projection, which alone are trained; 0 trains everything
    config.model.lora_alpha = 32.0  # adapters are multiplied by lora_alpha / lora_rank

    config.base = ConfigDict()  # supervised training from scratch, before adaptation
    config.base.seed = 0  # apart from config.seed, so that runs over seeds share one base model
    config.base.steps = 0
    config.base.batch = 128
    config.base.learning_rate = 3e-3

    config.rollouts = ConfigDict()
    config.rollouts.num_rollouts = 32  # M
    config.rollouts.max_rationale = 512  # tokens; then the end-of-think token is forced
    config.rollouts.at_once = 0  # prompts rolled out at a time, others following; 0 = all. Changes memory, not rollouts
    config.rollouts.temperature = 1.0  # other values leave the estimators' theory (METHOD §4), as do the next three
    config.rollouts.top_k = 0  # draw among the k likeliest tokens; 0 = all
    config.rollouts.top_p = 1.0  # among the likeliest that together have this probability
    config.rollouts.min_p = 0.0  # among those with at least this share of the likeliest one's probability
    config.rollouts.unclosed = "drop"  # an end of sequence inside the rationale: drop (w = 0), or close it there

    config.estimator = ConfigDict()  # a row of tsallis_rl.objectives.ESTIMATORS; it takes the options it declares
    config.estimator.name = "garl"
    config.estimator.q = 0.75  # commitment
    config.estimator.normalize = True  # the factor 1/M^q of Algorithms 1 and 2
    config.estimator.baseline = "loo"  # GARL: loo or none
    config.estimator.correction = "none"  # GARL: none, or jackknife for the plug-in's O(1/M) bias
    config.estimator.path_weight = 1.0  # GARL: 0 trains the rationale alone
    config.estimator.num_draws = 0  # PAFT: K; 0 = M
    config.estimator.resampling = "categorical"  # PAFT: categorical, systematic or residual
    config.estimator.epsilon = 1e-4  # GRPO
    config.estimator.schedule = "constant"  # of q: constant, step, linear, cosine, per_example
    config.estimator.q_end = 0.0
    config.estimator.schedule_steps = 100  # from q to q_end
    config.estimator.schedule_nats = 20.0  # per_example: q where log P̂ is at or below −this, q_end where P̂ = 1

    config.controller = ConfigDict()  # of q, and of the switch from GARL to PAFT, from the step before's metrics
    config.controller.nats = 0.0  # q is the least with P^(1−q) ≥ e^−nats; 0 = off; try 5
    config.controller.max_variance = 0.0  # and whose shadow's tr Σ/‖ḡ‖² is at most this; 0 asks no shadow
    config.controller.collapse_nats = 0.0  # PAFT once the mean log P̂ is this far below its best; 0 = never

    config.shadow = ConfigDict()  # other estimators' gradients on the same rollouts, measured and not used
    config.shadow.every = 0  # steps between measurements; 0 = none
    config.shadow.estimators = ("garl@0", "garl@0.25", "garl@0.5", "garl@0.75", "garl@1", "paft@0.75", "paft@1")
    config.shadow.reference_rollouts = 512  # a prompt, in the reference gradient; a multiple of num_rollouts

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or sgd, with b1 for momentum
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"  # or cosine, to zero at the last step
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip = 1.0  # global gradient norm

    config.mesh = ConfigDict()  # devices along each axis; data = 0 takes what the others leave
    config.mesh.data = 0
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.train = ConfigDict()
    config.train.steps = 150
    config.train.prompts = 16  # P, prompts in a step
    config.train.micro_batch = 0  # prompts per backward pass; 0 = all. Changes memory, not the gradient
    config.train.micro_rollouts = 0  # of a prompt, rollouts per backward pass at most; 0 = all. As micro_batch
    config.train.save_rollouts_every = 50  # steps between files in rollouts/; 0 = none
    config.train.save_rollouts_prompts = 4  # groups in each

    config.guards = ConfigDict()
    config.guards.max_skipped = 10  # updates in a row that were left out as not finite; then the run stops
    config.guards.collapse_share = 0.5  # of its best that validation maj@k, or the closed share, may lose; 1 = all
    config.guards.on_collapse = "say"  # say; best: back to that checkpoint; paft: GARL goes on as PAFT; lower_q: halve

    config.evaluate = ConfigDict()
    config.evaluate.every = 25  # steps between evaluations on validation, each with a checkpoint
    config.evaluate.samples = 16  # sampled answers a prompt
    config.evaluate.prompts = 64  # prompts rolled out at a time
    return config


@dataclasses.dataclass(frozen=True)
class Limit:
    """Numbers from `least` to `most`; without `least` itself if `above`, without `most` itself if `below`."""

    least: float
    most: float = 1e300
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number may be given; NaN may not."""
        enough = value > self.least if self.above else value >= self.least
        return enough and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        start = f"above {self.least:g}" if self.above else f"from {self.least:g} up"
        return start + ("" if self.most > 1 else f", {'below' if self.below else 'at most'} {self.most:g}")


# Of the fields whose other values mean nothing; what checks a field more closely stands elsewhere.
LIMITS: dict[str, Limit] = {
    **dict.fromkeys(
        (
            "task.max_prompt", "task.max_answer", "base.batch", "rollouts.num_rollouts", "rollouts.max_rationale",
            "estimator.schedule_steps", "shadow.reference_rollouts", "mesh.fsdp", "mesh.tensor", "train.steps",
            "train.prompts", "train.save_rollouts_prompts", "guards.max_skipped", "evaluate.every", "evaluate.samples",
            "evaluate.prompts",
        ),
        Limit(1, 2**31 - 1),
    ),
    **dict.fromkeys(
        (
            "seed", "base.seed", "task.train_examples", "task.validation_examples", "task.test_examples",
            "model.lora_rank", "base.steps", "estimator.num_draws", "shadow.every", "optimizer.warmup_steps",
            "mesh.data", "train.micro_batch", "train.micro_rollouts", "train.save_rollouts_every", "rollouts.top_k",
            "rollouts.at_once",
        ),
        Limit(0, 2**31 - 1),
    ),
    **dict.fromkeys(
        (
            "base.learning_rate", "rollouts.temperature", "estimator.path_weight", "controller.nats",
            "controller.max_variance", "controller.collapse_nats", "optimizer.learning_rate", "optimizer.weight_decay",
        ),
        Limit(0.0),
    ),
    # Of 0 would come a division by it, no gradient, or no token that may be drawn.
    **dict.fromkeys(
        ("model.lora_alpha", "estimator.epsilon", "estimator.schedule_nats", "optimizer.eps", "optimizer.clip"),
        Limit(0.0, above=True),
    ),
    "rollouts.top_p": Limit(0.0, 1.0, above=True),
    **dict.fromkeys(("guards.collapse_share", "rollouts.min_p"), Limit(0.0, 1.0)),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2"), Limit(0.0, 1.0, below=True)),
}  # fmt: skip


def check_limits(config: ConfigDict) -> None:
    """Raises UserError for a field outside its LIMITS."""
    for field, limit in LIMITS.items():
        section, _, name = field.rpartition(".")
        value = (config[section] if section else config)[name]
        if not limit.holds(value):
            raise UserError(f"config.{field}={value}: choose a number {limit}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """An argument with a closed set of values, the first of which is the default."""

    values: Sequence[str]


def parse_argument(argument: str | None, accepted: Mapping[str, Choice | str | int | float], *, where: str) -> dict:
    """Reads the `key=value,key=value` behind a config file's colon.

    Args:
      argument: the text behind the colon, or None.
      accepted: key -> its default (whose type the value must have), or the Choice it is made from.
      where: the config file's name, for messages.

    Returns:
      key -> value for every accepted key.

    Raises:
      UserError: an unknown key, a key without a value, or a value that is not accepted; says what is.
    """
    values = {key: rule.values[0] if isinstance(rule, Choice) else rule for key, rule in accepted.items()}
    seen = set()
    for item in filter(None, (argument or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or key not in accepted:
            raise UserError(f"{where}: unknown argument {item!r}; accepted: {', '.join(f'{k}=…' for k in accepted)}")
        if key in seen:
            raise UserError(f"{where}: {key} is given twice in {argument!r}; give it once")
        seen.add(key)
        rule = accepted[key]
        if isinstance(rule, Choice):
            if text not in rule.values:
                raise UserError(f"{where}: {key}={text!r} is not accepted; choose from {', '.join(rule.values)}")
            values[key] = text
        else:
            try:
                values[key] = type(rule)(text)
            except ValueError:
                raise UserError(f"{where}: {key}={text!r} is not a {type(rule).__name__}") from None
    return values


def answers_config(argument: str | None, *, where: str) -> tuple[ConfigDict, bool]:
    """What configs of question-answer pairs share: q, estimator, start and model may stand behind the colon.

    Args:
      argument: the text behind the colon, or None.
      where: the config file's name, for messages.

    Returns:
      The config, and whether its model is the tiny one, with which a CPU shows the whole way.
    """
    arg = parse_argument(
        argument, {"q": 0.75, "estimator": "garl", "start": Choice(("cold", "warm")), "model": "tiny"}, where=where
    )
    config = base_config()
    config.task.start = arg["start"]
    config.model.size = arg["model"]
    config.estimator.name = arg["estimator"]
    config.estimator.q = arg["q"]
    config.optimizer.learning_rate = 1e-6
    tiny = arg["model"] == "tiny"
    if tiny:
        config.optimizer.learning_rate = 1e-3
    return config, tiny


def paper_config(
    argument: str | None, *, where: str, task: str, examples: tuple[int, int, int], max_rationale: int
) -> ConfigDict:
    """A data set of the paper, read from its official files (METHOD §6).

    Args:
      argument: the text behind the colon, or None.
      where: the config file's name, for messages.
      task: config.task.name.
      examples: of training, validation and test.
      max_rationale: tokens.
    """
    config, tiny = answers_config(argument, where=where)
    config.task.name = task
    config.task.folder = ""  # of the official files; empty = where --download puts them
    config.task.prompt_overflow = "trim" if tiny else "drop"  # of prompts that are too long: trim leaves passages out
    config.task.max_prompt = 2048 if tiny else 4096
    config.task.max_answer = 32 if tiny else 128
    config.task.vocab_size = 4096  # of the tokeniser that is trained for a model without one
    train, validation, test = (200, 16, 16) if tiny else examples
    config.task.update(train_examples=train, validation_examples=validation, test_examples=test)
    config.rollouts.max_rationale = 24 if tiny else max_rationale
    if tiny:
        config.train.steps = 10
        config.train.prompts = 2
        config.evaluate.every = 5
        config.evaluate.prompts = 8
    return config
