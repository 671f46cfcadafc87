"""Measures the peers that run on torch: transformers' generate, and the loss path of TRL's GRPO trainer."""

import argparse

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import harness


def model(args: argparse.Namespace) -> Qwen3ForCausalLM:
    """Makes model S with random parameters in float32."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=args.vocab, hidden_size=harness.WIDTH, num_hidden_layers=args.layers,
        num_attention_heads=harness.HEADS, num_key_value_heads=harness.KV_HEADS, head_dim=harness.HEAD_DIM,
        intermediate_size=harness.FFN, tie_word_embeddings=True, max_position_embeddings=8192, rope_theta=1e6,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def prompts(args: argparse.Namespace) -> torch.Tensor:
    """Draws P prompts and repeats each M times, [P · M, T0]."""
    return torch.randint(5, args.vocab, (harness.PROMPTS, args.prompt)).repeat_interleave(args.rollouts, 0)


def generate(args: argparse.Namespace, cache: str) -> dict[str, float]:
    """Measures sampling with a key-value cache, dynamic or static."""
    net, ids = model(args).eval(), prompts(args)

    @torch.no_grad()
    def once():
        out = net.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=args.new,
            min_new_tokens=args.new, cache_implementation=cache,
        )  # fmt: skip
        assert out.shape[1] == args.prompt + args.new

    return harness.time_calls(once, args.repeats)


def update(args: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Measures GRPO's loss as TRL does: whole sequences forward, logits of completions, selective log-softmax."""
    from trl.trainer.utils import selective_log_softmax

    net, ids = model(args).train(), prompts(args)
    tokens = torch.cat([ids, torch.randint(5, args.vocab, (len(ids), args.new))], 1)
    advantages = torch.randn(len(ids))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def once():
        optimizer.zero_grad()
        for first in range(0, len(tokens), micro_batch):
            rows, advantage = tokens[first : first + micro_batch], advantages[first : first + micro_batch]
            logits = net(rows, logits_to_keep=args.new + 1, use_cache=False).logits[:, :-1]
            log_probs = selective_log_softmax(logits, rows[:, -args.new :])
            ratio = torch.exp(log_probs - log_probs.detach())
            clipped = torch.clamp(ratio, 0.8, 1.2)
            loss = -torch.min(ratio * advantage[:, None], clipped * advantage[:, None]).sum() / tokens.numel()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return harness.time_calls(once, args.repeats)
