"""Sinks for TensorBoard, W&B and Trackio; each imports its library when it begins.

Their files are in the run's folder: tensorboard/, wandb/ and trackio/. A continued run is logged anew from its first
step, so that no step is doubled or missing; a W&B run that is on the server continues there instead, from the first
line that the server lacks.
"""

import html
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.loggers import RunNames

COLUMNS = ("example", "rollout", "rationale", "answer", "gold", "log_w", "weight", "score", "path", "reward")


def prepare(name: str, folder: Path) -> None:
    """Tells a library, before it is imported, where its files belong; keeps $TRACKIO_DIR if it is set."""
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").absolute()))


def check(name: str) -> None:
    """Refuses a library that would prompt for an API key.

    Raises:
      UserError: W&B is not offline, and has no key.
    """
    if name == "wandb":
        import wandb

        mode = wandb.setup().settings.mode
        if mode not in ("offline", "dryrun", "disabled") and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "config.log.to names 'wandb', and there is no key of an account: run `wandb login`, or set "
                "WANDB_MODE=offline and send the files later with `wandb sync`"
            )


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the columns of COLUMNS that the rows have."""
    return [name for name in COLUMNS if any(name in row for row in rows)]


class TensorBoard:
    """Event files in tensorboard/, written anew at each start, so that steps a run discarded are not in them."""

    def __init__(self, names: RunNames):
        self._folder = names.folder / "tensorboard"

    def begin(self, config: Mapping[str, Any]) -> None:
        """Replaces the event files by a new one, which begins with the config as text."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        earlier = list(self._folder.glob("events.out.tfevents.*"))
        # Not a SummaryWriter: a full disk would end its thread without an error here.
        self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        self._add(0, session_log=SessionLog(status=SessionLog.START))  # a reader forgets what it has read of the run
        for file in earlier:  # emptied first: a reader within a file moves on to the next at its end
            if file.stat().st_size:
                os.truncate(file, 0)
            else:
                file.unlink()
        text = json.dumps(config, indent=2, ensure_ascii=False)
        self._text("config", 0, "".join(f"    {line}\n" for line in text.splitlines()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers as one event."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]))

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rollouts as a table in Markdown; text written by a model is escaped."""
        columns = columns_of(rows)

        def cell(value: Any) -> str:
            text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
            return "<br>".join(html.escape(text).replace("|", "&#124;").translate(_MARKUP).splitlines())

        lines = [columns, ["---"] * len(columns)] + [[cell(row.get(name)) for name in columns] for row in rows]
        self._text("rollouts", step, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _text(self, tag: str, step: int, text: str) -> None:
        from tensorboardX.summary import text as summary_of

        self._add(step, summary=summary_of(tag, text.encode(errors="replace").decode()))

    def _add(self, step: int, **what: Any) -> None:
        """Writes an event and flushes it, so that readers see it."""
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()


_MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_{}[]()#+-!~$:"}


class Wandb:
    """A W&B run, with its files in wandb/; each line of metrics.jsonl is a row, plotted over the step.

    A row has the number of its line, which stays the same when the run is logged again. So a server takes each row
    once; offline, a folder with all rows replaces that of the previous start.
    """

    def __init__(self, names: RunNames):
        self._names = names
        self._row = -1

    def begin(self, config: Mapping[str, Any]) -> None:
        """Begins the run, or continues it if a server has it."""
        import wandb

        names = self._names
        for offline in (names.folder / "wandb").glob(f"offline-run-*-{names.id}"):
            shutil.rmtree(offline, ignore_errors=True)
        self._run = wandb.init(
            id=names.id,
            resume=None if wandb.setup().settings.mode in ("offline", "dryrun") else "allow",
            project=names.project,
            name=names.run,
            tags=names.tags,
            config=dict(config),
            dir=names.folder,
            settings=wandb.Settings(console="off"),  # the terminal is the run's own
        )
        self._run.define_metric("*", step_metric="step")
        self._first = self._run.step  # first row that the server lacks

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers as the next row."""
        self._row += 1
        self._log({"step": step, **values})

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rollouts to the row of their step."""
        import wandb

        columns = columns_of(rows)
        data = [[row.get(name) for name in columns] for row in rows]
        self._log({"rollouts": wandb.Table(columns=columns, data=data)})

    def close(self) -> None:
        """Ends the run, and waits until everything is sent."""
        self._run.finish()

    def _log(self, values: Mapping[str, Any]) -> None:
        if self._row >= self._first:
            self._run.log(dict(values), step=self._row)


class Trackio:
    """A Trackio run in trackio/, or in $TRACKIO_DIR; replaces the run that an earlier start made.

    The library uses one folder per process: several runs in one process all write to the first one's. On a Space
    (TRACKIO_SPACE_ID), where runs cannot be removed from here, each start adds another run with all steps.
    """

    def __init__(self, names: RunNames):
        self._names = names

    def begin(self, config: Mapping[str, Any]) -> None:
        """Removes the log that an earlier start made of this run, and begins a new one."""
        import trackio

        names = self._names
        with suppress(ValueError):  # no such project
            for run in trackio.Api().runs(names.project):
                if (run.config or {}).get("run_id") == names.id:
                    run.delete()
        about = {**config, "run_id": names.id, "tags": list(names.tags)}
        self._run = trackio.init(project=names.project, name=names.run, config=about, embed=False)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers at their step."""
        self._run.log(dict(values), step=step)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs the rollouts as a table."""
        import trackio

        columns = columns_of(rows)
        data = [[row.get(name) for name in columns] for row in rows]
        self._run.log({"rollouts": trackio.Table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()
