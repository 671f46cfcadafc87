"""Measures Tunix: its sampler, and the train step of its GRPO, in an environment of its own.

python -m venv tunix && tunix/bin/pip install google-tunix
python -m benchmarks.rollouts --tunix-python=tunix/bin/python
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl.algo_core import grpo_loss_fn
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from benchmarks import harness

PAD, NEVER = 0, -1


class Numbers:
    """A tokeniser whose text is its ids; no id marks a beginning or an end."""

    def encode(self, text: str) -> list[int]:
        """Reads "5 17" as [5, 17]."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Writes [5, 17] as "5 17"."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """Returns 0, which means none."""
        return 0

    def eos_id(self) -> int:
        """Returns an id that is never sampled."""
        return NEVER

    def pad_id(self) -> int:
        """Returns an id that is in no prompt."""
        return PAD


def model(args: argparse.Namespace) -> Qwen3:
    """Makes model S with random parameters in float32."""
    config = ModelConfig(
        num_layers=args.layers, vocab_size=args.vocab, embed_dim=harness.WIDTH, hidden_dim=harness.FFN,
        num_heads=harness.HEADS, head_dim=harness.HEAD_DIM, num_kv_heads=harness.KV_HEADS, rope_theta=1_000_000,
        norm_eps=1e-6, use_tied_embedding=True,
    )  # fmt: skip
    return Qwen3(config, rngs=nnx.Rngs(0))


def prompts(args: argparse.Namespace) -> np.ndarray:
    """Draws P prompts and repeats each M times, [P · M, T0]."""
    ids = np.random.default_rng(0).integers(5, args.vocab, (harness.PROMPTS, args.prompt))
    return ids.repeat(args.rollouts, 0)


def generate(args: argparse.Namespace) -> dict[str, float]:
    """Measures sampling at temperature 1 from the whole vocabulary, by the path that does not sort it."""
    tokenizer = Numbers()
    cache = CacheConfig(args.prompt + args.new, args.layers, harness.KV_HEADS, harness.HEAD_DIM)
    sampler = Sampler(model(args), tokenizer, cache)
    texts = [tokenizer.decode(row) for row in prompts(args).tolist()]

    def once():
        out = sampler(
            texts, args.new, max_prompt_length=args.prompt, temperature=1.0, top_p=1.0, seed=0, eos_tokens=[NEVER]
        )
        assert all(len(row) == args.new for row in out.tokens)

    return harness.time_calls(once, args.repeats)


def update(args: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Measures one update of GRPO without a reference model, accumulated over micro-batches of sequences."""
    ids = prompts(args)
    rng = np.random.default_rng(0)
    completion = rng.integers(5, args.vocab, (len(ids), args.new))
    settings = GRPOConfig(num_generations=args.rollouts, beta=0.0)
    settings.temperature = 1.0  # set by its learner

    def loss(net: Qwen3, train_example: TrainExample):
        return grpo_loss_fn(net, train_example, settings, pad_id=PAD, eos_id=NEVER)

    parts = len(ids) // micro_batch
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    trainer = PeftTrainer(
        model(args), optimizer, TrainingConfig(eval_every_n_steps=1, gradient_accumulation_steps=parts)
    )
    trainer.with_loss_fn(loss, has_aux=True).with_gen_model_input_fn(lambda example: {"train_example": example})
    step, _ = trainer.jit_train_and_eval_step()
    advantages = rng.normal(size=len(ids)).astype(np.float32)
    examples = [
        TrainExample(
            prompt_ids=jnp.array(ids[rows]), prompt_mask=jnp.ones(ids[rows].shape, bool),
            completion_ids=jnp.array(completion[rows]), completion_mask=jnp.ones(completion[rows].shape, bool),
            advantages=jnp.array(advantages[rows]), ref_per_token_logps=None, old_per_token_logps=None,
        )
        for rows in (slice(first, first + micro_batch) for first in range(0, len(ids), micro_batch))
    ]  # fmt: skip

    def once():
        before = jax.device_get(trainer.model.final_norm.w[...])
        for example in examples:
            _, _, norm = step(example)
        assert np.isfinite(norm)
        assert (jax.device_get(trainer.model.final_norm.w[...]) != before).any()

    return harness.time_calls(once, args.repeats)
