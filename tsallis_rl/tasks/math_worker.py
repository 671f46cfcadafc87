"""Compares mathematical answers in a process of its own, which ends where one comparison takes too much.

Run by path, so that nothing of the package is imported; `math_equivalence` starts it. Reads a line of JSON
{"golds": […], "answer": …} at a time, answers each with 1 or 0. A comparison that takes more processor time than the
argument says (seconds), or more than MEMORY, ends the process: what a model wrote may be a tower of powers.
"""

import json
import logging
import os
import resource
import signal
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY = 4 * 2**30  # bytes of addresses
_MARKS = ("$", r"\(", r"\[", r"\boxed")  # around mathematics in prose


def parsed(text: str) -> list:
    """Parses an answer; all of it is mathematics where no mark says otherwise."""
    marked = text if any(mark in text for mark in _MARKS) else f"${text}$"
    return parse(marked, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=0)


def is_equal(answer: str, golds: list[str]) -> bool:
    """Tells whether an answer equals one of the golds; what cannot be parsed equals nothing."""
    try:
        found = parsed(answer)
        return bool(found) and any(verify(parsed(gold), found, timeout_seconds=0) for gold in golds)
    except Exception:  # of a library that was given what a model wrote
        return False


def main(seconds: float) -> None:
    """Answers requests on standard input until it ends."""
    out = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # the libraries' own words  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    print(int(is_equal(r"\frac{1}{2}", ["0.5"])), file=out, flush=True)  # parsers are built at their first use
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = is_equal(request["answer"], request["golds"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(equal), file=out, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
