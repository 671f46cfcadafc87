"""Writes and reads pretrained model folders as they are published, with random tensors."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.paths import ROOT
from tsallis_rl.config import command_line as settings
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import parameter_shapes
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.pretrained import load_pretrained
from tsallis_rl.models.sharding import make_mesh, state_shardings
from tsallis_rl.training.loop import train

QWEN = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "vocab_size": 420,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def write_tensors(config: dict, dtype, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws random tensors with the names and shapes with which Qwen3 is published."""
    width, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv = (config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for n in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
            "self_attn.q_proj": (heads, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, heads), "self_attn.q_norm": (config["head_dim"],),
            "self_attn.k_norm": (config["head_dim"],), "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width),
            "mlp.down_proj": (width, ffn),
        }  # fmt: skip
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)
        return (1 + 0.1 * values if len(shape) == 1 else 0.02 * values).astype(dtype)

    return {name: draw(shape) for name, shape in shapes.items()}


def write_folder(folder, dtype=jnp.bfloat16, files: int = 1, tensors: bool = True, **changes) -> dict[str, np.ndarray]:
    """Writes a folder as it is published; returns its tensors."""
    folder.mkdir(exist_ok=True)
    config = QWEN | changes
    (folder / "config.json").write_text(json.dumps(config))
    if not tensors:
        return {}
    tensors = write_tensors(config, dtype)
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        weight_map = {name: f"part-{i % files}.safetensors" for i, name in enumerate(tensors)}
        for file in set(weight_map.values()):
            save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def load(folder, **mesh):
    arch = pretrained_architecture(folder)
    shapes = parameter_shapes(arch)
    config = base_config().mesh
    config.update(mesh)
    return arch, load_pretrained(folder, arch, shapes, state_shardings(make_mesh(config), shapes))


def edit_json(file: Path, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def double(folder, factor=2):
    """Doubles every tensor of a folder's model.safetensors in place, or multiplies it by another factor."""
    save_file({name: factor * array for name, array in read(folder).items()}, folder / "model.safetensors")


def read(folder):
    """Reads all tensors of a folder's safetensors."""
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def run_folder(tmp_path: Path, folder: Path, learning_rate: float = 1e-2, **model):
    """Trains one step from `folder`; returns the run's config."""
    lines = [{"prompt": f"the cat {i} sat", "answer": "on"} for i in range(12)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = settings.load_config(f"{ROOT / 'configs' / 'jsonl.py'}:start=chat,model={folder}")
    config.task.update(path=str(tmp_path / "task.jsonl"), max_prompt=64, max_answer=4)
    config.model.update(model)
    config.rollouts.update(num_rollouts=3, max_rationale=6)
    config.optimizer.learning_rate = learning_rate
    config.train.update(steps=1, prompts=2, save_rollouts_every=0)
    config.evaluate.update(every=1, samples=2, prompts=2)
    train(config, tmp_path / "run")
    return config
