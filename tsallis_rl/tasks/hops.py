"""The embedded task: follow a printed map for three hops, then say where you are.

A prompt prints eight of sixteen entities as key-value pairs in random order, and a query:

    <bos> forward plain  ann hal  kim bob  …  from ann

The rationale is the entities met on three hops, the answer the last of them. A base model learns from examples with
rationales to hop in three ways (`forward` along the map, `backward` against it, `next` key in print order) and to write
answers in three formats, plus, rarely, in a free form wrapped in decorations, some of which are very rare.

Warm start: the prompt says `forward plain`, and the gold answer is the entity. Cold start: no instructions, and the
gold answer follows `config.task.cold_answer`, by default the entity in five rare decorations in a fixed order, to which
the base model gives a probability near e^−45. Mixed start: examples of both kinds take turns.

With `config.task.hint` the prompt also prints an entity, as `= kim` before `from`, which is the answer in that share of
the examples. Half of the base model's examples answer with it at once, so that the answer can be had without a
rationale, less well.

With `config.task.shown` that share of the base model's examples prints the last entity of the rationale in the same
way, so that the model learns to reason towards an answer that it is shown (docs/method.md §9).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Split, SupervisedBatch, Task
from tsallis_rl.tasks.tokenizers import WordTokenizer

ENTITIES = (
    *("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal"),
    *("ivy", "jon", "kim", "lee", "max", "ned", "ola", "pam"),
)
KINDS = ("forward", "backward", "next")
KIND_SHARES = (0.6, 0.2, 0.2)  # of the base model's examples, with and without instructions
FORMATS = ("plain", "suffix", "prefix")
RARE = ("~", "^", "%", "$", "#", "@")
ORDINARY = ("(", ")", "[", "]", "{", "}", "<", ">", "*", "+", "-", "/", "|", "!")

PRINTED, HOPS, BEFORE, AFTER = 8, 3, 3, 2  # entities in a prompt; hops; decorations before and after an answer
HINT = 2  # tokens that a hint adds to a prompt
PROMPT, RATIONALE, ANSWER = 2 * PRINTED + 5, HOPS, BEFORE + AFTER + 2  # longest, in tokens; with <bos> and <eos>

NO_INSTRUCTIONS, DISOBEY, WRONG_HOP, FREE_FORM, RARE_EACH = 0.5, 0.5, 0.1, 0.02, 0.002  # the base model's examples
CLEAN = 1900  # batches in which instructions are obeyed and no hop goes wrong: so a small model learns to hop first
# First batch -> entities in the prompts from there on. Few are soon told apart, so that the model has learnt to hop
# before there are eight. Without these lessons some seeds learn it late or not at all.
LESSONS = {0: 2, 300: 4, 700: PRINTED}
AT_ONCE = 0.5  # share of the base examples after the clean ones that answer with the hint, if any, at once

GRADES = ("exact",)
STARTS = {"cold": ("cold",), "warm": ("warm",), "mixed": ("cold", "warm")}
COLD_ANSWER = " ".join((*RARE[:BEFORE], "{}", *RARE[BEFORE : BEFORE + AFTER]))

_TOKENIZER = WordTokenizer((*ENTITIES, *KINDS, *FORMATS, "from", "=", *RARE, *ORDINARY))
_ENTITY, _KIND, _FORMAT, _FROM, _EQUALS, _RARE = (
    _TOKENIZER.encode(word)[0] for word in (ENTITIES[0], KINDS[0], FORMATS[0], "from", "=", RARE[0])
)


def tokenizer() -> WordTokenizer:
    """Returns the task's tokeniser: one id per word, 49 words and 4 special tokens."""
    return _TOKENIZER


class _Maps(NamedTuple):
    """n printed maps of k entities each; entities are numbers 0 to 15.

    Attributes:
      keys: [n, k] in print order.
      values: [n, k], a permutation of the keys.
      query: [n], one of the keys.
      step: [n, 3, 16], the entity to which a hop of each kind leads from each entity.
    """

    keys: np.ndarray
    values: np.ndarray
    query: np.ndarray
    step: np.ndarray


def _draw_maps(rng: np.random.Generator, n: int, printed: int = PRINTED) -> _Maps:
    rows = np.arange(n)[:, None]
    keys = rng.permuted(np.tile(np.arange(len(ENTITIES)), (n, 1)), axis=1)[:, :printed]
    values = rng.permuted(keys, axis=1)
    step = np.zeros((n, len(KINDS), len(ENTITIES)), int)
    step[rows, 0, keys] = values
    step[rows, 1, values] = keys
    step[rows, 2, keys] = np.roll(keys, -1, axis=1)
    return _Maps(keys, values, keys[np.arange(n), rng.integers(printed, size=n)], step)


def _prompt(maps: _Maps, instructions: np.ndarray, hints: np.ndarray | None = None) -> np.ndarray:
    """Encodes maps of k entities as prompt ids [n, 2k + 5], or [n, 2k + 7] with the entities `hints` [n].

    Instruction ids [n, 2], or none [n, 0], come right after <bos>.
    """
    n = len(maps.query)
    pairs = np.stack([maps.keys, maps.values], axis=2).reshape(n, -1) + _ENTITY
    bos, equals, asked = (np.full((n, 1), word) for word in (_TOKENIZER.bos, _EQUALS, _FROM))
    hinted = [] if hints is None else [equals, hints[:, None] + _ENTITY]
    return np.concatenate([bos, instructions, pairs, *hinted, asked, maps.query[:, None] + _ENTITY], axis=1)


def _draw_hints(rng: np.random.Generator, maps: _Maps, answer: np.ndarray, share: float) -> np.ndarray | None:
    """Draws a printed entity for each map → [n]: the answer [n] in this share, else another; None at share 0."""
    if not share:
        return None
    n, printed = maps.keys.shape
    place = (maps.keys == answer[:, None]).argmax(1)
    other = (place + rng.integers(1, printed, size=n)) % printed
    return maps.keys[np.arange(n), np.where(rng.random(n) < share, place, other)]


def base_batch(seed: int, step: int, n: int, hint: float = 0.0, shown: float = 0.0) -> SupervisedBatch:
    """Makes n examples with rationales to train the base model, a function of (seed, step).

    Args:
      seed: the base model's seed.
      step: number of the batch.
      n: number of examples.
      hint: share of the prompts whose hint is the rationale's last entity; 0: prompts have no hints.
      shown: share of the examples that print the rationale's last entity as a hint, if prompts have none.
    """
    rng = np.random.default_rng([seed, 1, step])
    rows = np.arange(n)
    printed = next(entities for first, entities in reversed(LESSONS.items()) if first <= step)
    maps = _draw_maps(rng, n, printed)
    asked, instead = rng.choice(len(KINDS), size=(2, n), p=KIND_SHARES)
    form = rng.integers(len(FORMATS), size=n)
    blur = step >= CLEAN
    kind = np.where(rng.random(n) < DISOBEY * blur, instead, asked)

    entity, rationale = maps.query, np.empty((n, HOPS), int)
    for hop in range(HOPS):
        stray = maps.keys[rows, rng.integers(printed, size=n)]
        entity = np.where(rng.random(n) < WRONG_HOP * blur, stray, maps.step[rows, kind, entity])
        rationale[:, hop] = entity + _ENTITY

    told = rng.random(n) >= NO_INSTRUCTIONS
    draw = np.random.default_rng([seed, 3, step])
    hints = _draw_hints(draw, maps, entity, hint)
    at_once = np.zeros(n, bool) if hints is None else draw.random(n) < AT_ONCE * blur
    entity = entity if hints is None else np.where(at_once, hints, entity)
    prompt = _prompt(maps, np.stack([_KIND + asked, _FORMAT + form], axis=1), hints)
    unused = np.full((n, 2 * (PRINTED - printed) + 2), _TOKENIZER.pad)
    untold = np.concatenate([np.delete(prompt, [1, 2], axis=1), unused], axis=1)
    prompt = np.concatenate([prompt, unused[:, 2:]], axis=1)

    entity, equals = entity + _ENTITY, np.full(n, _EQUALS)
    end, pad = np.full(n, _TOKENIZER.stop_ids[0]), np.full(n, _TOKENIZER.pad)
    formats = np.stack([np.stack(f, 1) for f in ([entity, end, pad], [entity, equals, end], [equals, entity, end])])
    answer = np.concatenate([formats[form, rows], np.full((n, ANSWER - 3), _TOKENIZER.pad)], axis=1)
    chance = [RARE_EACH] * len(RARE) + [(1 - RARE_EACH * len(RARE)) / len(ORDINARY)] * len(ORDINARY)
    around = _RARE + rng.choice(len(chance), size=(n, BEFORE + AFTER), p=chance)
    wrapped = np.concatenate([around[:, :BEFORE], entity[:, None], around[:, BEFORE:], end[:, None]], axis=1)
    free = rng.random(n) < FREE_FORM

    batch = SupervisedBatch(
        prompt=np.where(told[:, None], prompt, untold),
        prompt_length=prompt.shape[1] - unused.shape[1] + 2 * told,
        rationale=rationale,
        rationale_length=np.where(at_once, 0, HOPS),
        answer=np.where(free[:, None], wrapped, answer),
        answer_length=np.where(free, ANSWER, np.where(form == 0, 2, 3)),
    )
    return _show_ends(batch, np.random.default_rng([seed, 5, step]).random(n) < shown) if shown else batch


def _show_ends(batch: SupervisedBatch, is_shown: np.ndarray) -> SupervisedBatch:
    """Prints the rationale's last entity, as a hint, in the prompts of a batch that `is_shown` [n] marks."""
    n, asked = len(is_shown), batch.prompt_length[:, None] - 2
    query = np.take_along_axis(batch.prompt, asked + np.arange(2), axis=1)
    end = np.stack([np.full(n, _EQUALS), batch.rationale[:, -1]], axis=1)
    prompt = np.pad(batch.prompt, ((0, 0), (0, HINT)), constant_values=_TOKENIZER.pad)
    longer = prompt.copy()
    np.put_along_axis(longer, asked + np.arange(2 + HINT), np.concatenate([end, query], axis=1), axis=1)
    return batch._replace(
        prompt=np.where(is_shown[:, None], longer, prompt), prompt_length=batch.prompt_length + HINT * is_shown
    )


def show_answer(example: Example) -> str:
    """Writes an example's prompt with the entity of its answer as its hint, whatever decorations the answer has.

    A hint that the prompt already has, from config.task.hint, is removed.
    """
    words = str(example.prompt).split()
    if words[-4] == "=":
        del words[-4:-2]
    entity = next(word for word in example.answer.split() if word in ENTITIES)
    return " ".join((*words[:-2], "=", entity, *words[-2:]))


def _examples(seed: int, split: int, n: int, starts: Sequence[str], cold_answer: str, hint: float) -> Split:
    """Makes the n examples of split number `split`; starts take turns, and name the parts if there are several."""
    maps = _draw_maps(np.random.default_rng([seed, 2, split]), n)
    rows, entity = np.arange(n), maps.query
    for _ in range(HOPS):
        entity = maps.step[rows, 0, entity]
    hints = _draw_hints(np.random.default_rng([seed, 4, split]), maps, entity, hint)
    warm = np.tile([_KIND, _FORMAT], (n, 1))
    prompts = {"warm": _prompt(maps, warm, hints), "cold": _prompt(maps, warm[:, :0], hints)}
    answers = {"warm": "{}", "cold": cold_answer}

    def example(i: int) -> Example:
        start = starts[i % len(starts)]
        answer = answers[start].replace("{}", ENTITIES[entity[i]])
        return Example(str(i), _TOKENIZER.decode(prompts[start][i]), answer, part=start if len(starts) > 1 else "")

    return Split([example(i) for i in range(n)])


def load(task: ConfigDict, seed: int) -> Task:
    """Makes the three splits from the seed, with config.task.{train,validation,test}_examples examples.

    Raises:
      UserError: an unknown start, a cold_answer that is not words of the task around one {}, or a max_prompt without
        room for hints.
    """
    if task.start not in STARTS:
        raise UserError(f"config.task.start={task.start!r}: choose from {', '.join(STARTS)}")
    words = task.cold_answer.split()
    if words.count("{}") != 1 or not {*words} <= {"{}", "=", *RARE, *ORDINARY}:
        raise UserError(
            f"config.task.cold_answer={task.cold_answer!r}: give one {{}} for the entity and, around it, any of "
            f"{' '.join(('=', *RARE, *ORDINARY))}, separated by spaces"
        )
    hint, shown = task.get("hint", 0.0), task.get("shown", 0.0)  # earlier runs lack them
    longest = PROMPT + HINT - 2 * (task.start == "cold")
    if hint and task.max_prompt < longest:
        raise UserError(
            f"config.task.hint={hint:g}: prompts have up to {longest} tokens with it, more than config.task.max_prompt="
            f"{task.max_prompt}; set it as configs/hops.py:hint={hint:g}, which makes room, or raise max_prompt"
        )
    if hint and shown:
        raise UserError(f"config.task.shown={shown:g}: prompts have hints already, of task.hint={hint:g}; set one to 0")
    sizes = {"train": task.train_examples, "validation": task.validation_examples, "test": task.test_examples}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"config.task.{name}_examples={size}: hops makes its examples, say how many")
    return Task(
        name="hops",
        splits={
            name: _examples(seed, i, n, STARTS[task.start], " ".join(words), hint)
            for i, (name, n) in enumerate(sizes.items())
        },
        grade=lambda prediction, example: {"exact": float(prediction.strip() == example.answer)},
        metric="exact",
        supervised=functools.partial(base_batch, hint=hint, shown=shown),
        show_answer=show_answer,
    )
