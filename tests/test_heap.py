"""What a process holds once it has compiled."""

import subprocess
import sys

PROGRAM = """
import os
import jax
from tsallis_rl.heap import COMPILED, give_back_after_compiling

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

size = 60_000
give_back_after_compiling()
blocks = [b"x" * size for _ in range(4000)]  # too small for pages of their own
pin = [b"x" * size for _ in range(10)]  # behind them: the heap cannot just end earlier
del blocks
before = held()
jax.monitoring.record_event_duration_secs(COMPILED, 0.1)
short = held()
jax.monitoring.record_event_duration_secs(COMPILED, 1.0)
print(before - short, before - held())
"""


def test_what_compiling_freed_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    after_short, after_long = map(int, done.stdout.split())
    assert abs(after_short) < 1e6
    assert after_long > 0.9 * 4000 * 60_000
