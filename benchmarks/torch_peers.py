"""Measures the peers that run on torch: transformers' generate, and the loss path of TRL's GRPO trainer."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import harness

if TYPE_CHECKING:
    from tsallis_rl.models import Architecture


class Place(NamedTuple):
    """The device and the type in which a peer computes."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def model(arch: "Architecture", place: Place) -> Qwen3ForCausalLM:
    """Makes a Qwen3 of these sizes with random parameters."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arch.vocab_size, hidden_size=arch.width, num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads, num_key_value_heads=arch.kv_heads, head_dim=arch.head_dim,
        intermediate_size=arch.ffn, tie_word_embeddings=True, max_position_embeddings=arch.context,
        rope_theta=arch.rope_theta, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device(place.device):
        return Qwen3ForCausalLM(config).to(place.dtype)


def prompts(arch: "Architecture", sizes: harness.Sizes, place: Place) -> torch.Tensor:
    """Draws P prompts and repeats each M times, [P · M, T0]."""
    shape = (sizes.prompts, sizes.prompt)
    return torch.randint(5, arch.vocab_size, shape, device=place.device).repeat_interleave(sizes.rollouts, 0)


def finish(place: Place) -> None:
    """Waits for the device."""
    if place.device == "cuda":
        torch.cuda.synchronize()


def generates(arch: "Architecture", sizes: harness.Sizes, cache: str, place: Place) -> Callable[[], None]:
    """Makes the function that samples with a key-value cache, dynamic or static."""
    net, ids = model(arch, place).eval(), prompts(arch, sizes, place)

    @torch.no_grad()
    def once() -> None:
        out = net.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=sizes.new,
            min_new_tokens=sizes.new, cache_implementation=cache,
        )  # fmt: skip
        assert out.shape[1] == sizes.prompt + sizes.new
        finish(place)

    return once


def selective_log_softmax() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns TRL's function, or without TRL one that does the same row by row, as TRL does for 16-bit types."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError:

        def selective_log_softmax(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            rows = (torch.log_softmax(x, -1).gather(-1, i[:, None])[:, 0] for x, i in zip(logits, index, strict=True))
            return torch.stack(list(rows))

    return selective_log_softmax


def updates(
    arch: "Architecture", sizes: harness.Sizes, micro_batch: int, place: Place, checkpointing: bool = False
) -> Callable[[], None]:
    """Makes the function that takes a GRPO step as TRL does: whole sequences forward, logits of completions."""
    log_softmax = selective_log_softmax()
    net, ids = model(arch, place).train(), prompts(arch, sizes, place)
    if checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    completions = torch.randint(5, arch.vocab_size, (len(ids), sizes.new), device=place.device)
    tokens, advantages = torch.cat([ids, completions], 1), torch.randn(len(ids), device=place.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def once() -> None:
        optimizer.zero_grad()
        for first in range(0, len(tokens), micro_batch):
            rows, advantage = tokens[first : first + micro_batch], advantages[first : first + micro_batch]
            logits = net(rows, logits_to_keep=sizes.new + 1, use_cache=False).logits[:, :-1]
            log_probs = log_softmax(logits, rows[:, -sizes.new :])
            ratio = torch.exp(log_probs - log_probs.detach())
            clipped = torch.clamp(ratio, 0.8, 1.2)
            loss = -torch.min(ratio * advantage[:, None], clipped * advantage[:, None]).sum() / tokens.numel()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        finish(place)

    return once


def _of_model_s(args: argparse.Namespace) -> tuple["Architecture", harness.Sizes]:
    torch.set_num_threads(1)
    arch = harness.architecture(vocab_size=args.vocab, layers=args.layers)
    return arch, harness.Sizes(harness.PROMPTS, args.rollouts, args.prompt, args.new)


def generate(args: argparse.Namespace, cache: str) -> dict[str, float]:
    """Measures sampling of model S in float32 on one core, with a dynamic or static cache."""
    return harness.time_calls(generates(*_of_model_s(args), cache, Place()), args.repeats)


def update(args: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Measures a GRPO step of model S in float32 on one core."""
    return harness.time_calls(updates(*_of_model_s(args), micro_batch, Place()), args.repeats)
