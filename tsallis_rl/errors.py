"""The one exception that is a sentence for the person at the keyboard."""


class UserError(ValueError):
    """A mistake in a flag, a config field or an input file.

    The message says which file, field or flag, what was found there and what to do; the entry points print it without
    a traceback and exit with status 2.
    """
