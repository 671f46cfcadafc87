"""Compares mathematical answers in a process of its own, which ends if a comparison takes too much time.

`math_equivalence` starts it by path, so that nothing of the package is imported. It reads JSON, one line
{"golds": […], "answer": …} at a time, and answers each with 1 or 0. A model's answer may be a tower of powers: a
comparison that takes more processor seconds than the argument ends the process; one that takes more than MEMORY is
answered with 0, or ends it too.
"""

import json
import logging
import os
import resource
import signal
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY = 4 * 2**30  # bytes of address space
_MARKS = ("$", r"\(", r"\[", r"\boxed")  # around mathematics in prose


def parsed(text: str) -> list:
    """Parses an answer; all of it is mathematics unless it holds a mark. Signs of money and bold type are no part."""
    text = text.replace(r"\$", "")
    if text.startswith("**") and text.endswith("**"):
        text = text[2:-2]
    marked = text if any(mark in text for mark in _MARKS) else f"${text}$"
    return parse(marked, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=0)


def is_equal(answer: str, golds: list[str]) -> bool:
    """Returns whether an answer equals one of the golds; one that cannot be parsed equals nothing."""
    try:
        found = parsed(answer)
        return bool(found) and any(verify(parsed(gold), found, timeout_seconds=0) for gold in golds)
    except Exception:  # the library may raise anything on a model's text
        return False


def main(seconds: float) -> None:
    """Answers requests on standard input until it ends."""
    out = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # silences the libraries  # noqa: SIM115
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the default ends the process
    print(int(is_equal(r"\frac{1}{2}", ["0.5"])), file=out, flush=True)  # parsers are built at their first use
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = is_equal(request["answer"], request["golds"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(equal), file=out, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
