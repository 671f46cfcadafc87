"""Programs that threads compile: each is compiled once, found by its call, and not counted in a step's waiting time."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.compiled import counted_programs
from tsallis_rl.runs.compile_ahead import Call, CompileAhead, described
from tsallis_rl.runs.compiling import compile_seconds


@pytest.fixture
def compiled():
    with counted_programs() as counts:
        yield counts


class Slow(NamedTuple):
    """A program that takes as long to compile as a function does."""

    compile: Callable[[], object]

    def lower(self):
        return self


def scaled(x, by, *, power):
    return x**power * by


def test_a_call_finds_what_threads_compiled_for_arrays_that_were_not_there(compiled):
    ahead, program = CompileAhead(1), jax.jit(scaled, static_argnames="power")
    x, before = jnp.arange(3.0), compile_seconds()
    shapes = described(x), jax.ShapeDtypeStruct((), "float32")
    ahead.begin(Call(program, shapes, {"power": 3}))
    ahead.begin(Call(program, shapes, {"power": 3}))
    made = ahead.make(Call(program, (x, np.float32(2)), {"power": 3}))
    np.testing.assert_array_equal(made, [0, 2, 16])
    ahead.make(Call(program, (x, np.float32(2)), {"power": 3}))
    assert compiled["scaled", True] + compiled["scaled", False] == 1
    assert compile_seconds().since(before).cached == 0


def test_other_static_arguments_shapes_and_types_are_other_programs():
    program = jax.jit(scaled, static_argnames="power")
    x = jnp.arange(3.0)

    def key(x, by=2.0, power=3):
        return Call(program, (x, np.float32(by)), {"power": power}).key

    assert key(x) == key(x + 1, by=5) == key(described(x)) == key(np.ones(3, np.float32))
    on_device = jax.device_put(x, jax.devices()[0])  # which cannot be moved to another one
    others = [key(x, power=4), key(jnp.arange(4.0)), key(jnp.arange(3)), key(on_device)]
    assert len({key(x), *others}) == 5


def test_a_call_does_not_wait_for_what_no_thread_has_begun_with(compiled):
    ahead, begun, release = CompileAhead(1), threading.Event(), threading.Event()
    ahead.begin(Call(Slow(lambda: begun.set() or release.wait()), (), {}))
    begun.wait()
    x = jnp.arange(5.0)
    likely = Call(jax.jit(scaled, static_argnames="power"), (x, np.float32(2)), {"power": 2})
    made = ahead.make(Call(jax.jit(jnp.flip), (x,), {}), lambda: [likely])
    release.set()
    np.testing.assert_array_equal(made, x[::-1])
    assert compiled["flip", True] == 1
    np.testing.assert_array_equal(ahead.make(likely), 2 * x**2)


def test_what_threads_compile_does_not_count_as_waiting_and_waiting_does(compiled):
    ahead, x = CompileAhead(1), jnp.ones((8, 8))

    def long(x, n):
        for i in range(n):
            x = jnp.sin(x @ x) + i
        return x

    program = jax.jit(long, static_argnames="n")
    call = Call(program, (x,), {"n": 30})
    ahead.begin(call)
    ahead._begun[call.key].result()
    before = compile_seconds()
    ahead.make(call)
    assert compile_seconds() == before
    assert compiled["long", False] == 1 and not compiled["long", True]
    ahead.make(Call(program, (x,), {"n": 31}))
    assert compile_seconds().since(before).compiled > 0


def test_another_ctrl_c_ends_a_command_that_waits_for_a_thread():
    code = """
        import sys, time
        from tests.runs.test_compile_ahead import Call, CompileAhead, Slow
        from tsallis_rl.runs.errors import one_sentence
        with one_sentence(is_process=True):
            CompileAhead(1).begin(Call(Slow(lambda: time.sleep(60)), (), {}))
            print("ends", flush=True)
            sys.exit(143)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ends\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (130, "")


def test_what_no_thread_has_begun_with_does_not_keep_the_command_from_ending():
    code = """
        import threading, time
        from tests.runs.test_compile_ahead import Call, CompileAhead, Slow
        ahead, begun = CompileAhead(1), threading.Event()
        for i in range(3):
            ahead.begin(Call(Slow(lambda i=i: print(i) or begun.set() or time.sleep(0.3)), (), {}))
        begun.wait()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert (ended.stdout.split(), ended.stderr) == (["0"], "")


def test_what_cannot_be_compiled_is_said_by_its_call():
    program = jax.jit(lambda x: jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((), "float32"))(x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_target"):
        CompileAhead(1).make(Call(program, (jnp.float32(1),), {}))
