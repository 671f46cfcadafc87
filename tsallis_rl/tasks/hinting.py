"""Makes hinted prompts, which show the gold answer, for proposals that know it (docs/method.md §9)."""

import dataclasses
import re
from collections.abc import Callable, Sequence

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks.base import Example, Message, Split, Task
from tsallis_rl.tasks.encoded_cache import encode_cached
from tsallis_rl.tasks.encoding import EncodedSplit
from tsallis_rl.tasks.markers import AUTO, Markers
from tsallis_rl.tasks.prompt_widths import share_widths
from tsallis_rl.tasks.tokenizers import Tokenizer

TEMPLATE = "{prompt}\n\nThe answer is {answer}. Reach it step by step, as if it had not been given."
PLACES = ("{prompt}", "{answer}")
_NO_LIMIT = 2**31 - 1
_Prompt = str | tuple[Message, ...]


def show_answer(example: Example, template: str) -> _Prompt:
    """Fills a template with an example's prompt, or the last of its chat messages, and its answer."""

    def written(prompt: str) -> str:
        filled = {"{prompt}": prompt, "{answer}": example.answer}
        return re.sub("|".join(map(re.escape, PLACES)), lambda place: filled[place[0]], template)

    if isinstance(example.prompt, str):
        return written(example.prompt)
    *before, last = example.prompt
    return (*before, {**last, "content": written(last["content"])})


def hinted_split(
    plain: EncodedSplit, task: Task, template: str, tokenizer: Tokenizer, markers: Markers, widths: int
) -> EncodedSplit:
    """Encodes the examples of an encoded split again, in the same order, with prompts that show their answers.

    Args:
      plain: the split; trimmed prompts stay trimmed.
      task: its task; its own form of a shown answer, if it has one, is used if the template is auto.
      template: config.proposal.template.
      tokenizer: the model's tokeniser.
      markers: the run's markers.
      widths: largest number of widths that prompts are padded to.

    Raises:
      UserError: the template has a word that the tokeniser does not know.
    """
    show = task.show_answer if template == AUTO else None
    if show is None:
        sentence = TEMPLATE if template == AUTO else template

        def show(example: Example) -> _Prompt:
            return show_answer(example, sentence)

    split = Split(_Shown(plain.examples, show))
    budgets = {"max_prompt": _NO_LIMIT, "max_answer": plain.max_answer}
    try:
        encoded = encode_cached(split, tokenizer, markers, **budgets, name="hinted")
    except KeyError as error:  # from a closed vocabulary
        raise UserError(
            f"config.proposal.template={template!r}: the tokeniser of task {task.name} has no word {error}; use its "
            "words, or leave the template at auto"
        ) from None
    return share_widths({"train": encoded}, widths, int(encoded.prompt_length.max(initial=1)))["train"]


class _Shown(Sequence):
    """Examples whose prompts show their answers, each made on access.

    Args:
      source: the examples.
      show: example -> the prompt that shows its answer.
    """

    def __init__(self, source: Sequence[Example], show: Callable[[Example], _Prompt]):
        self._source, self._show = source, show

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int | slice) -> Example | list[Example]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        example = self._source[i]
        return dataclasses.replace(example, prompt=self._show(example), shorten=None)
