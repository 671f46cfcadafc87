"""Looks at a task as a model will see it, or fetches its official files.

    python -m tsallis_rl.tasks --config=hops:start=warm --show=3 --split=validation
    python -m tsallis_rl.tasks --config=finq --download --config.task.folder=data/finqa

Prints examples as the model reads them, with token counts; how many were left out, and why; and how long
prompts and answers are.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from tsallis_rl.config.command_line import command
from tsallis_rl.runs.cache import cache_folder
from tsallis_rl.runs.errors import UserError, visible
from tsallis_rl.tasks import Example, LoadedTask, check_task_fields, load_with_tokenizer, task_module
from tsallis_rl.tasks.download import fetch
from tsallis_rl.tasks.encoded_cache import encode_cached, unattainable_cached

FLAGS = flags.FlagValues()
SHOW = flags.DEFINE_integer("show", 3, "Number of examples to print.", lower_bound=0, flag_values=FLAGS)
SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "validation", "test"], "Which split to look at.", flag_values=FLAGS
)
DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch the official files first.", flag_values=FLAGS)

_BARS = 10
_WIDTH = 40


def histogram(title: str, lengths: Sequence[int], budget: int) -> str:
    """Draws a histogram of lengths in tokens, with the share of them that fits the config's budget."""
    if not len(lengths):
        return f"{title}: none"
    top = max(*lengths, 10)
    step = int(np.ceil(top / _BARS / (10 ** (len(str(top)) - 2))) * 10 ** (len(str(top)) - 2))
    counts = np.bincount(np.asarray(lengths) // step)
    within = np.mean(np.asarray(lengths) <= budget)
    middle, high = np.percentile(lengths, [50, 95])
    lines = [f"{title}: median {middle:.0f}, 95% up to {high:.0f}, longest {max(lengths)}"]
    for i in range(np.flatnonzero(counts)[0], len(counts)):
        bar = "█" * round(_WIDTH * counts[i] / counts.max())
        lines.append(f"  {i * step:>6}–{(i + 1) * step - 1:<6} {counts[i]:>6} {bar}")
    return "\n".join([*lines, f"  {within:.1%} fit the budget of {budget}"])


def show(example: Example, prompt: Sequence[int], answer: Sequence[int], loaded: LoadedTask) -> str:
    """Writes an example as the model reads it; ⟦…⟧ marks labels, which are not part of the text."""
    tokenizer, markers = loaded.tokenizer, loaded.markers
    think, joint = (tokenizer.decode(ids, special=True) for ids in (markers.end_of_think, markers.joint))
    others = [alias for alias in example.aliases if alias != example.answer]
    aliases = f"\n⟦also right: {' | '.join(others)}⟧" if others else ""
    return (
        f"⟦{example.id}: prompt, {len(prompt)} tokens⟧\n{tokenizer.decode(prompt, special=True)}\n"
        f"⟦rationale, sampled⟧{think}⟦joint, {len(markers.joint)} tokens⟧{joint}"
        f"⟦answer, {len(answer)} tokens⟧{tokenizer.decode(answer, special=True)}{aliases}"
    )


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return "".join(f"\n  {count} left out: {reason}" for reason, count in counts)


@command(FLAGS, config=True)
def main(config: ConfigDict) -> None:
    """Prints counts, examples and histograms of one split."""
    if DOWNLOAD.value:
        release = getattr(task_module(config.task.name), "RELEASE", None)
        if release is None:
            raise UserError(f"--download: the task {config.task.name} has no official files")
        check_task_fields(config.task)
        config.task.folder = str(fetch(release, config.task.folder))
    loaded = load_with_tokenizer(config, cache_folder("tokenizers"))
    task, tokenizer, markers = loaded
    split = task.splits[SPLIT.value]
    max_prompt, max_answer = config.task.max_prompt, config.task.max_answer
    encoded = encode_cached(split, tokenizer, markers, max_prompt=max_prompt, max_answer=max_answer, name=SPLIT.value)
    for i in range(min(SHOW.value, len(encoded))):
        shown = show(encoded.examples[i], encoded.prompts.row(i), encoded.answers.row(i), loaded)
        print(visible(shown), end="\n\n")
    print(histogram("prompt tokens, before trimming", encoded.before[0], max_prompt))
    print(histogram("answer tokens, end of sequence included", encoded.before[1], max_answer))
    print(
        f"{task.name}, {config.task.start} start, {SPLIT.value}: {len(encoded)} examples, {encoded.trimmed} of them "
        f"with a trimmed prompt; vocabulary {tokenizer.vocab_size}" + _counts(encoded.dropped.items())
    )
    for reason, count in unattainable_cached(encoded, tokenizer, markers, task, config.task).items():
        print(f"  {count} kept: {reason}")
    for note in (*markers.lines(tokenizer), *task.notes, *markers.notes):
        print(f"  {note}")


if __name__ == "__main__":
    main()
