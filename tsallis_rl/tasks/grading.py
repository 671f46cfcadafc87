"""Chooses a task's metric and reward, and keeps a run alive whatever a user's grader does."""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.own_code import is_dotted, own_object
from tsallis_rl.runs.progress import say
from tsallis_rl.tasks.base import Example, Score, Task

_ROUNDING = 1e-6  # how far a score may lie outside of [0, 1]
_CALL = "(prediction, example) that returns a number from 0 to 1"


def with_settings(task: Task, config: ConfigDict) -> Task:
    """Gives a task the metric and the reward of config.task, and graders that never raise.

    Grades on demand (`Task.more_grades`) and functions of the user's are computed only if one of the two settings
    names them.

    Raises:
      UserError: a setting names no grade of the task and no function.
    """
    chosen, more = {"metric": task.metric, "reward": task.reward}, {}
    for setting in chosen:
        name = config.get(setting, "auto")
        if name != "auto":
            chosen[setting] = name
            if (score := _score(f"config.task.{setting}", name, task)) is not None:
                more[name] = score
    if chosen["reward"] == "auto":
        names = _names(task)
        chosen["reward"] = "exact" if "exact" in names or not names else chosen["metric"]
    grader = _Grader(dataclasses.replace(task, more_grades=more))
    return dataclasses.replace(task, **chosen, more_grades=more, grade=grader.grade, vote_key=grader.vote_key)


def _names(task: Task) -> tuple[str, ...]:
    """Finds the names of a task's grades by grading a gold answer; none if that fails."""
    examples = [example for split in task.splits.values() for example in split.examples[:1]]
    try:
        return tuple(task.grade(examples[0].answer, examples[0])) if examples else ()
    except KeyboardInterrupt:
        raise
    except BaseException:  # from a user's grader, which is reported when it grades
        return ()


def _score(setting: str, name: str, task: Task) -> Score | None:
    """Finds the function of a grade that the task's own grader does not compute; None if it does."""
    names = _names(task)
    if name in task.more_grades:
        return task.more_grades[name]
    return chosen_function(setting, name, (*names, *task.more_grades) if names else ())


def chosen_function(setting: str, name: str, grades: Sequence[str]) -> Score | None:
    """Loads the function that a setting names; None if it names one of the task's grades, or auto.

    Args:
      setting: its name for messages, such as config.task.metric.
      name: its value.
      grades: names of the task's grades; empty: they are not known, and any plain name may be one.

    Raises:
      UserError: it names neither.
    """
    if name in (*grades, "auto") or (not grades and isinstance(name, str) and name.isidentifier()):
        return None
    if isinstance(name, str) and is_dotted(name):
        return own_function(setting, name)
    raise UserError(
        f"{setting}={name!r}: choose from {', '.join((*grades, 'auto'))}, or name a function {_CALL}, as in "
        "my_module.my_grade"
    )


def own_function(setting: str, path: str) -> Score:
    """Loads a function of the user's by its dotted path, MODULE.FUNCTION.

    Raises:
      UserError: there is no such module or function, or it cannot be called with a prediction and an example.
    """
    module, _, name = path.rpartition(".")
    function = own_object(path, f"{setting}={path!r}")
    if not callable(function):
        raise UserError(f"{setting}={path!r}: {module} has no function {name!r}; write one {_CALL}")
    try:
        inspect.signature(function).bind("prediction", "example")
    except TypeError:
        raise UserError(
            f"{setting}={path!r}: the function does not take (prediction, example); write one {_CALL}"
        ) from None
    except ValueError:  # its signature cannot be inspected
        pass
    return function


def is_correct(grades: Mapping[str, float], metric: str) -> bool:
    """Returns whether an answer with these grades counts as correct; one without the metric's grade does not."""
    return grades.get(metric, 0.0) >= 1


class _Grader:
    """A task's graders, which never raise; the first failure is printed, further ones are not.

    Args:
      task: the task; its `more_grades` are computed beside its own grades.
    """

    def __init__(self, task: Task):
        self._task = task
        self._is_told = False

    def grade(self, prediction: str, example: Example) -> dict[str, float]:
        """Grades an answer; a grade whose function raises, or gives no number, is left out."""
        graders: list[Callable[[], Mapping[str, float]]] = [lambda: self._own(prediction, example)]
        for name, score in self._task.more_grades.items():
            graders.append(lambda name=name, score=score: {name: score(prediction, example)})
        grades: dict[str, float] = {}
        for grader in graders:
            try:
                grades |= _checked(grader())
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a user's function may raise SystemExit or CancelledError
                self._tell("grader", error, prediction, example.id)
        return grades

    def _own(self, prediction: str, example: Example) -> Mapping[str, float]:
        """Grades by the task's own grader, which has to return the task's own metric."""
        grades = self._task.grade(prediction, example)
        if isinstance(grades, Mapping) and self._task.metric not in grades:
            raise ValueError(f"it gave no {self._task.metric!r}")
        return grades

    def vote_key(self, prediction: str) -> str:
        """Makes an answer's vote key; the answer itself if the task's function fails."""
        try:
            key = self._task.vote_key(prediction)
            if isinstance(key, str):
                return key
            raise TypeError(f"it gave {key!r}, no text")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._tell("vote key", error, prediction, None)
            return prediction.strip()

    def _tell(self, what: str, error: BaseException, prediction: str, example: str | None) -> None:
        """Prints the first failure."""
        if self._is_told:
            return
        self._is_told = True
        answer = ascii(prediction if len(prediction) <= 100 else prediction[:100] + "…")
        reason = ascii("".join(traceback.format_exception_only(error)).strip()[:300])[1:-1]
        where = f"the answer {answer}" + (f" to example {example!r}" if example is not None else "")
        say(
            f"WARNING: the {what} of task {self._task.name} failed on {where}: {reason}. An "
            "answer whose grade fails counts as wrong; grader_errors logs how many do; further ones are not printed"
        )


def _checked(grades: Mapping[str, float]) -> dict[str, float]:
    """Converts grades to numbers.

    Raises:
      TypeError, ValueError: one is not a number from 0 to 1.
    """
    if not isinstance(grades, Mapping):
        raise TypeError(f"it gave {grades!r}, no {{name: score}}")
    for name, score in grades.items():
        if isinstance(score, str | bytes):  # float() reads "1"
            raise TypeError(f"its {name!r} is {score[:100]!r}, no number")
    found = {name: float(score) for name, score in grades.items()}
    for name, score in found.items():
        if not -_ROUNDING <= score <= 1 + _ROUNDING:  # any percent would pass for right; NaN fails too
            raise ValueError(f"its {name!r} is {score}, no number from 0 to 1")
    return found
