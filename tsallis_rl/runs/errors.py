"""UserError, the exception whose message is for the person at the keyboard, and how it ends a program."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a flag, a config field or an input file.

    The message says which file, field or flag, what was found there and what to do; the entry points print it without
    a traceback and exit with status 2.
    """


@contextmanager
def one_sentence() -> Iterator[None]:
    """Ends an entry point by one sentence: a UserError without traceback and status 2, Ctrl-C with status 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by SIGINT; what was saved stays, the same command continues from it", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
