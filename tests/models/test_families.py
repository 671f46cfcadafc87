"""Pretrained families, compared with transformers: random parameters that it makes and saves are loaded here.

Needs the extra `parity` (torch and transformers); without it these tests are skipped.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backends import close
from tsallis_rl.config.schema import base_config
from tsallis_rl.models import bind, output_logits, parameter_shapes, token_log_probs
from tsallis_rl.models.families import pretrained_architecture
from tsallis_rl.models.pretrained import load_pretrained
from tsallis_rl.models.sharding import make_mesh, state_shardings
from tsallis_rl.sampler import RolloutShape, roll_out
from tsallis_rl.sampler.batch import PromptBatch
from tsallis_rl.sampler.keys import example_keys
from tsallis_rl.sampler.rules import Rules
from tsallis_rl.sampler.sampling_settings import Sampling
from tsallis_rl.sampler.token_sampling import TokenSampling

torch = pytest.importorskip("torch", reason="needs the extra parity: torch and transformers")
transformers = pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")

SHAPE = dict(
    vocab_size=211,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,  # not 32 / 4
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
WITHOUT_HEAD_DIM = {name: value for name, value in SHAPE.items() if name != "head_dim"}
CASES = {
    "qwen3 tied": lambda: transformers.Qwen3Config(
        **SHAPE, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "qwen3 untied": lambda: transformers.Qwen3Config(
        **SHAPE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "qwen2.5": lambda: transformers.Qwen2Config(
        **WITHOUT_HEAD_DIM, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "llama3 scaled": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3),
    "llama3 tied": lambda: transformers.LlamaConfig(
        **SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3 | {"rope_theta": 5e5}
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SHAPE,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
}


def shapes_of(arch):
    return parameter_shapes(arch)


def load(folder):
    """Architecture and parameters of a folder."""
    arch = pretrained_architecture(folder)
    shapes = shapes_of(arch)
    return arch, load_pretrained(folder, arch, shapes, state_shardings(make_mesh(base_config().mesh), shapes))


@functools.cache
def reference(case):
    """A model of transformers with random weights, no norm at one and no bias at zero."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CASES[case](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """Their model, our architecture, our parameters."""
    folder = tmp_path_factory.mktemp("model")
    model = reference(request.param)
    model.save_pretrained(folder)
    return model, *load(folder)


def test_logits_of_padded_batches_agree(pair):
    model, arch, params = pair
    lengths = [1, 4, 17, 60]  # beyond Gemma's window of 5 and Llama's 32 positions of pretraining
    tokens = np.random.default_rng(0).integers(3, arch.vocab_size, (4, 60))
    mask = np.arange(60) < np.array(lengths)[:, None]
    with torch.no_grad():
        expected = model(torch.tensor(tokens * mask), attention_mask=torch.tensor(mask)).logits.numpy()
    decoder = bind(arch, params)
    hidden, _ = jax.jit(lambda tokens: bind(arch, params).prefill(tokens))(jnp.array(tokens * mask))
    found = output_logits(hidden, decoder.output_head(), arch.logit_form)
    assert expected[mask].std() > 0.3
    np.testing.assert_allclose(found[mask], expected[mask], atol=close(1e-4))


def test_log_probabilities_and_their_gradients_agree(pair):
    model, arch, params = pair
    tokens = np.random.default_rng(1).integers(3, arch.vocab_size, (2, 24))
    weight = np.random.default_rng(2).normal(size=(2, 23)).astype(np.float32)

    def ours(params):
        decoder = bind(arch, params)
        hidden, _ = decoder.prefill(jnp.array(tokens))
        log_probs = token_log_probs(hidden[:, :-1], decoder.output_head(), jnp.array(tokens[:, 1:]), arch.logit_form)
        return (weight * log_probs).sum(), log_probs

    (_, found), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    model.zero_grad()
    log_probs = model(torch.tensor(tokens)).logits[:, :-1].log_softmax(-1)
    log_probs = log_probs.gather(-1, torch.tensor(tokens[:, 1:, None]))[..., 0]
    (torch.tensor(weight) * log_probs).sum().backward()
    np.testing.assert_allclose(found, log_probs.detach().numpy(), atol=close(1e-4))

    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    layers = grads["layers"]
    up = np.stack([theirs[f"model.layers.{n}.mlp.up_proj.weight"].T for n in range(arch.layers)])
    key = np.stack([theirs[f"model.layers.{n}.self_attn.k_proj.weight"].T for n in range(arch.layers)])
    for name, one, other in (
        ("embed", grads["embed"], theirs["model.embed_tokens.weight"]),
        ("norm", grads["norm"], theirs["model.norm.weight"]),
        ("up", layers["up"], up),
        ("key", layers["key"].reshape(key.shape), key),
    ):
        np.testing.assert_allclose(one, other, atol=close(2e-4) * np.abs(other).max(), err_msg=name)


def test_greedy_decoding_through_the_cache_gives_their_tokens_for_64_steps(pair):
    model, arch, params = pair
    prompts = np.random.default_rng(3).integers(3, arch.vocab_size, (2, 11))
    lengths = np.array([11, 7])
    expected = []
    for prompt, length in zip(prompts, lengths, strict=True):
        ids = torch.tensor(prompt[None, :length])
        settings = transformers.GenerationConfig(
            max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(model.generate(ids, generation_config=settings)[0, length:].numpy())
    batch = PromptBatch(jnp.array(prompts), jnp.array(lengths), jnp.array([[5], [5]]), jnp.array([1, 1]))
    nothing = jnp.int32(arch.vocab_size)  # an id that is never drawn
    rules = Rules(
        budget=jnp.int32(64), end_of_think=nothing[None], stop_ids=nothing[None], joint=jnp.zeros(0, jnp.int32),
        close_unclosed=jnp.array(False),
    )  # fmt: skip
    sampling = Sampling(TokenSampling(temperature=jnp.float32(0)), rules)
    keys = example_keys(0, 0, 0, np.arange(2))
    rolled = roll_out(params, batch, keys, sampling, RolloutShape(arch, num_rollouts=2, max_rationale=64)).rollouts
    for p in range(2):
        for m in range(2):
            np.testing.assert_array_equal(rolled.targets[p, m, :64], expected[p])


def test_the_text_part_of_a_gemma_of_text_and_images_has_their_logits(tmp_path):
    text = CASES["gemma3"]().to_dict() | {"final_logit_softcapping": None}  # which they leave out here
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    arch, params = load(tmp_path)
    tokens = np.random.default_rng(0).integers(3, arch.vocab_size, (2, 40))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
    decoder = bind(arch, params)
    hidden, _ = decoder.prefill(jnp.array(tokens))
    assert expected.std() > 0.3
    found = output_logits(hidden, decoder.output_head(), arch.logit_form)
    np.testing.assert_allclose(found, expected, atol=close(1e-4))
