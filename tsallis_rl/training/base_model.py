"""Makes the model that training starts from: pretrained, or trained here on examples with rationales."""

import dataclasses
import functools
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsallis_rl.models import Architecture, initialize, lora, parameter_shapes
from tsallis_rl.models.adapters import load_adapter
from tsallis_rl.models.pretrained import load_pretrained
from tsallis_rl.models.sharding import prompt_shards, shard_prompts, state_shardings, to_host
from tsallis_rl.objectives import Coefficients
from tsallis_rl.runs.cache import cache_folder, check_writable, fingerprint, write_whole, writing
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.hub import model_folder
from tsallis_rl.runs.paths import check_no_device
from tsallis_rl.runs.processes import from_first, is_first
from tsallis_rl.runs.progress import Bar, labelled
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.record import Rollouts, supervised_record
from tsallis_rl.tasks.base import Task
from tsallis_rl.tasks.markers import Markers
from tsallis_rl.training.learner import update
from tsallis_rl.training.optimizer import TrainState, sharded_start
from tsallis_rl.training.packing import one_row_each

_NPY_HEADER = 1 << 12  # bytes at most before the numbers of an array in an archive


def base_parameters(config: ConfigDict, task: Task, markers: Markers, arch: Architecture, mesh: Mesh) -> dict:
    """Makes the parameters to adapt: those of the pretrained folder config.model.size, if it is one.

    Otherwise they are trained from scratch on task.supervised and cached by their settings; an unusable file in the
    cache is made again. A task without supervised examples, or config.base.steps = 0, starts from random parameters.

    Raises:
      UserError: the cache cannot be written, or config.base.batch does not fit the mesh.
    """
    base = config.base
    shapes = parameter_shapes(arch)
    shardings = state_shardings(mesh, shapes)
    if (folder := model_folder(config.model.size)).is_dir():
        return _pretrained(folder, config, arch, shapes, shardings)
    fresh = jax.jit(initialize, static_argnums=0, out_shardings=shardings)
    if task.supervised is None or not base.steps:
        return fresh(arch, jax.random.key(base.seed))

    file = cache_file(config, task, markers, arch)
    kept: dict = {}
    if from_first(lambda: _find(file, shapes, kept)):
        print(labelled("base model", str(file)))
        params = kept if is_first() else jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        return jax.tree.map(jax.device_put, multihost_utils.broadcast_one_to_all(params), shardings)

    if base.batch % (shards := prompt_shards(mesh.shape)):
        raise UserError(
            f"config.base.batch={base.batch} is not a multiple of the {shards} devices over which examples are split; "
            "the base model that training starts from is not in the cache yet"
        )
    from_first(lambda: _make_folder(file))  # fails before the minutes of training
    params = _train(base, task, markers, arch, mesh, fresh(arch, jax.random.key(base.seed)))
    arrays = flatten_dict(to_host(params), sep="/")
    from_first(lambda: _save(file, arrays))
    return params


def cache_file(config: ConfigDict, task: Task, markers: Markers, arch: Architecture) -> Path:
    """Names the cache file of the base model of a task with supervised examples."""
    base = config.base
    # Other examples make another base model; a sample of the batches stands for all of them.
    batches = (task.supervised(base.seed, step, base.batch) for step in range(0, base.steps, base.steps // 20 or 1))
    sample = [[array.tolist() for array in batch] for batch in batches]
    settings = {"examples": sample, "model": dataclasses.asdict(arch), "base": json.loads(base.to_json())}
    settings["end_of_think"] = markers.end_of_think
    return cache_folder("base") / f"{task.name}-{fingerprint(settings)}.npz"


def _make_folder(file: Path) -> None:
    """Makes the folder of a file; raises a UserError if it cannot be written."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(file.parent)  # a folder that is there may still be read-only


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name as an archive, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(file, buffer.getvalue())


def _find(file: Path, shapes: dict, kept: dict) -> bool:
    """Reads a cached archive into `kept`; returns False if there is none, or if it does not hold these parameters.

    An archive that is damaged, or of something else, is named on stderr: it is made again.
    """
    if not file.exists():
        return False
    try:
        kept.update(_load(file, shapes))
    except Exception as error:  # a damaged archive fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        reason = "it holds pickled objects" if "allow_pickle" in reason else reason
        print(f"WARNING: {file} is not the base model that was kept ({reason}); it is made again", file=sys.stderr)
        return False
    return True


def _load(file: Path, shapes: dict) -> dict:
    """Loads the arrays of an archive as a tree; allocates no more than `shapes` take.

    Raises:
      ValueError: names, shapes or dtypes are not those of `shapes`, or a number is not finite.
      Exception: whatever else a damaged archive raises.
    """
    check_no_device(file)
    wanted, found = flatten_dict(shapes, sep="/"), {}
    with np.load(file) as arrays:
        if other := wanted.keys() ^ set(arrays):
            raise ValueError(f"it has other names, as {min(other)}")
        for name, like in wanted.items():
            if arrays.zip.getinfo(f"{name}.npy").file_size > like.size * like.dtype.itemsize + _NPY_HEADER:
                raise ValueError(f"{name} is larger than {list(like.shape)}")
            array = arrays[name]
            if array.shape != like.shape or array.dtype != like.dtype:
                raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, not {list(like.shape)}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
            found[name] = array
    return unflatten_dict(found, sep="/")


def _pretrained(folder: Path, config: ConfigDict, arch: Architecture, shapes: dict, shardings: dict) -> dict:
    """Loads the folder's parameters; if adapters are trained beside them, in the dtype of the computation.

    The adapters are those of the folder config.model.adapter, or fresh ones.
    """
    (frozen, adapters), (frozen_shardings, adapter_shardings) = lora.split(shapes), lora.split(shardings)
    if not adapters:
        return load_pretrained(folder, arch, shapes, shardings)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, arch.dtype), frozen)
    params = load_pretrained(folder, arch, frozen, frozen_shardings)
    if config.model.adapter:
        if is_first():
            told = f"{config.model.adapter}, rank {arch.lora_rank}, alpha {arch.lora_alpha:g}"
            print(labelled("adapter", told))
        return lora.replace(params, load_adapter(model_folder(config.model.adapter), adapters, adapter_shardings))
    fresh = jax.jit(lambda key: lora.trained(initialize(arch, key)), out_shardings=adapter_shardings)
    return lora.replace(params, fresh(jax.random.key(config.base.seed)))


def _train(base: ConfigDict, task: Task, markers: Markers, arch: Architecture, mesh: Mesh, params: dict) -> dict:
    """Trains parameters on the task's examples with rationales, for config.base.steps steps."""
    warmup = min(100, base.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, base.learning_rate, warmup, base.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    state = sharded_start(mesh, params, optimizer)
    shardings = jax.tree.map(lambda x: x.sharding, state)

    @functools.partial(jax.jit, out_shardings=(shardings, None), donate_argnums=0)  # of its input: compiled once
    def step(state: TrainState, rollouts: Rollouts) -> tuple[TrainState, jax.Array]:
        ones = jnp.ones(rollouts.log_w.shape)
        rows = one_row_each(rollouts, Coefficients(score=ones, path=ones))
        state, metrics = update(state, rows, arch=arch, optimizer=optimizer)
        return state, metrics["surrogate"]

    progress = Bar(range(base.steps), "base model", called="steps")
    for i in progress:
        batch = task.supervised(base.seed, i, base.batch)
        prompts = PromptBatch(batch.prompt, batch.prompt_length, gold=batch.answer, gold_length=batch.answer_length)
        rollouts = supervised_record(prompts, batch.rationale, batch.rationale_length, markers.end_of_think)
        state, loss = step(state, shard_prompts(mesh, rollouts))
        if i % 50 == 0:
            progress.note = f"loss {float(loss):.2f}"
    return state.params
