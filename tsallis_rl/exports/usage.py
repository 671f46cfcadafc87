"""Writes the section of a model card that says how to prompt the model: a program for transformers, and what it reads.

The program's texts are Python literals, so nothing that a task or a tokeniser brings can end one.
"""

from itertools import islice, takewhile
from pathlib import Path

from ml_collections import ConfigDict

from tsallis_rl.objectives import ESTIMATORS, samples_rationales
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import read_object
from tsallis_rl.sampler.schedule import rollout_tokens
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.markers import FILE

COMPARED = 1000  # prompts of a task that are compared for how all of them begin


def usage(run: Path, config: ConfigDict, task: Task | None, base: str, *, adapter: bool) -> tuple[str, str]:
    """Writes a program that samples one answer, and the sentences that explain it.

    Args:
      run: folder of the run, whose markers are read.
      config: the run's settings.
      task: with prompts as the run's; None if it cannot be loaded.
      base: name or folder of the adapted model, whose tokeniser an adapter uses.
      adapter: the exported folder holds adapters alone.

    Returns:
      the program, and the text after it. The program is empty if the run kept no markers.
    """
    try:
        markers = read_object(run / FILE)
        texts = {name: markers[name]["text"] for name in ("think_prefix", "end_of_think", "joint", "end_of_answer")}
        stop_ids = [int(stop) for stop in markers["stop_ids"]["ids"]]
        fixed = sum(len(markers[name]["ids"]) for name in ("end_of_think", "joint"))
    except (UserError, OSError, LookupError, TypeError, ValueError):
        return "", f"The run kept no {FILE}, so how it prompted the model is not known here."
    reasons = samples_rationales(config.evaluate.rationale, ESTIMATORS.get(config.estimator.name))
    begins, closed = opening(task) if task else "", texts["end_of_think"] + texts["joint"]
    lines = _loading(base, adapter=adapter)
    lines += _reading(config, begins, texts["think_prefix"] + ("" if reasons else closed))
    answer = config.task.max_answer
    new = rollout_tokens(config.rollouts.max_rationale, fixed, answer) if reasons else answer
    lines += [
        f"output = model.generate(**inputs, {_sampling(config)}, max_new_tokens={new}, eos_token_id={stop_ids})",
        'written = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])',
    ]
    ending = f".removesuffix({texts['end_of_answer']!r}).strip()"
    told = f"The prompt is put together as the run did (start {config.task.start})."
    if not reasons:
        lines.append(f"answer = written{ending}")
        return "\n".join(lines), f"{told} The model answers at once, without a rationale."
    lines += [f"rationale, _, answer = written.partition({texts['end_of_think']!r})", f"answer = answer{ending}"]
    return "\n".join(lines), (
        f"{told} The run allowed {config.rollouts.max_rationale:,} tokens for a rationale and closed longer ones "
        "itself; `generate` does not, so `answer` may be empty. `python -m tsallis_rl.evaluate` closes them, and made "
        "the scores below."
    )


def opening(task: Task) -> str:
    """Finds the paragraphs with which the user's message of every example begins; "" if there are none."""
    examples = (example for split in task.splits.values() for example in split.examples)
    prompts = (example.prompt for example in islice(examples, COMPARED))
    texts = {prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts}
    paragraphs = zip(*(text.split("\n\n")[:-1] for text in texts), strict=False)
    shared = takewhile(lambda found: len(texts) > 1 and len(set(found)) == 1, paragraphs)
    return "".join(f"{found[0]}\n\n" for found in shared)


def _loading(base: str, *, adapter: bool) -> list[str]:
    """Writes the lines that load the card's folder."""
    if adapter:
        name, imports = "AutoPeftModelForCausalLM", ["from peft import AutoPeftModelForCausalLM"]
        imports.append("from transformers import AutoTokenizer")
    else:
        name, imports = "AutoModelForCausalLM", ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    return [
        *imports,
        "",
        'folder = "."  # the one that this file is in',
        f"tokenizer = AutoTokenizer.from_pretrained({repr(base) if adapter else 'folder'})",
        f"model = {name}.from_pretrained(folder)",
    ]


def _reading(config: ConfigDict, begins: str, after: str) -> list[str]:
    """Writes the lines that turn a question into ids, as the run did."""
    lines = [f'question = {begins!r} + "…"' if begins else 'question = "…"']
    suffix = f" + {after!r}" if after else ""
    if config.task.start not in ("chat", "warm"):
        return [*lines, f'inputs = tokenizer(question{suffix}, return_tensors="pt")']
    render = "apply_chat_template(messages, add_generation_prompt=True, enable_thinking=True, tokenize=False)"
    return [
        *lines,
        'messages = [{"role": "user", "content": question}]',
        f"prompt = tokenizer.{render}{suffix}",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
    ]


def _sampling(config: ConfigDict) -> str:
    """Writes the arguments that sample as the run's evaluations did."""
    settings = config.evaluate
    if settings.greedy or not settings.temperature:
        return "do_sample=False"
    numbers = f"temperature={settings.temperature}, top_k={settings.top_k}, top_p={settings.top_p}"
    return f"do_sample=True, {numbers}"
