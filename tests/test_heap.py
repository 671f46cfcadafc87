"""What a process holds once it has compiled, or given up large arrays."""

import subprocess
import sys

HELD = """
import os
import jax
from tsallis_rl.heap import COMPILED, give_back, give_back_after_compiling

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

give_back_after_compiling()
"""
COMPILING = """
size = 60_000
blocks = [b"x" * size for _ in range(4000)]  # too small for pages of their own
pin = [b"x" * size for _ in range(10)]  # behind them: the heap cannot just end earlier
del blocks
before = held()
jax.monitoring.record_event_duration_secs(COMPILED, 0.1)
short = held()
jax.monitoring.record_event_duration_secs(COMPILED, 1.0)
print(before - short, before - held())
"""
GROWING = """
size = 8_000_000
b"x" * (3 * size)  # freed, it would make glibc keep smaller blocks
before = held()
blocks, pins = [], []
for _ in range(20):
    blocks.append(b"x" * size)
    pins.append(b"x" * 60_000)
full = held()
del blocks
give_back()
print(full - before, held() - before)
"""


def printed(program: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", HELD + program], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    return first, second


def test_what_compiling_freed_goes_back_to_the_system():
    after_short, after_long = printed(COMPILING)
    assert abs(after_short) < 1e6
    assert after_long > 0.9 * 4000 * 60_000


def test_arrays_that_were_outgrown_go_back_to_the_system():
    held, left = printed(GROWING)
    assert held > 20 * 8_000_000
    assert left < 5_000_000
