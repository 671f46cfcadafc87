"""A user's own logger, like the one that README shows, and some that fail."""

import json
import time


class Lines:
    def __init__(self, names):
        self.file = names.folder / "lines.jsonl"

    def begin(self, config):
        self.out = self.file.open("w")
        self.write("begin", config["seed"])

    def scalars(self, step, values):
        self.write("scalars", step, values)

    def table(self, step, rows):
        self.write("table", step, rows)

    def close(self):
        self.write("close")
        self.out.close()

    def write(self, *what):
        self.out.write(json.dumps(what) + "\n")


class NeverBegins(Lines):
    def begin(self, config):
        raise SystemExit("no network")


class FailsAtTheSecondLine(Lines):
    def scalars(self, step, values):
        if step:
            raise OSError(28, "No space left on device")


class Hangs(Lines):
    def scalars(self, step, values):
        time.sleep(3600)


class HasNoTable:
    begin = scalars = close = None
