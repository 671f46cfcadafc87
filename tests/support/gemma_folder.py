"""Writes an instruction-tuned text Gemma 3 as it is published, with random tensors and a few hundred ids."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.model_folders import write_tensors

CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 11],
    "final_logit_softcapping": None,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 16,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
}
TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception("System role not supported") }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
# Added tokens in the order of Gemma's ids: some that are not special are among the special ones.
ADDED = (*SPECIAL[:5], "[multimodal]", "<unused0>", "<unused1>", "\n", "\n\n", *SPECIAL[5:], "▁▁", "<table>")
BEYOND = "<image_soft_token>"  # its id is after the last row of the embedding


def _tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Trains a byte-fallback BPE whose vocabulary begins with the added tokens, as Gemma's does."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = [*ADDED, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=len(first) + 240, special_tokens=first, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def write_gemma(folder: Path, texts: list[str]) -> Path:
    """Writes the folder, with a vocabulary trained on `texts`.

    The ends of a turn and of a sequence are likelier than other tokens, so that they end some rationales.
    """
    folder.mkdir()
    fields = json.loads(_tokenizer(texts).to_str())
    rows = len(fields["model"]["vocab"])
    ids = {token: fields["model"]["vocab"][token] for token in ADDED} | {BEYOND: rows}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    fields["added_tokens"] = [
        {"id": id, "content": token, **plain, "special": token in (*SPECIAL, BEYOND)} for token, id in ids.items()
    ]
    (folder / "tokenizer.json").write_text(json.dumps(fields, ensure_ascii=False))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(row.pop("id")): row for row in fields["added_tokens"]},
        **named,
        "boi_token": "<start_of_image>",
        "image_token": BEYOND,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    specials = {name: {"content": token, **plain} for name, token in named.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    assert [ids["<eos>"], ids["<end_of_turn>"]] == CONFIG["eos_token_id"]
    generation = {"do_sample": True, "eos_token_id": CONFIG["eos_token_id"], "top_k": 64, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation))

    config = CONFIG | {"vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = write_tensors(config | {"tie_word_embeddings": True}, np.float32)
    rng = np.random.default_rng(1)
    for n in range(config["num_hidden_layers"]):
        for name in ("pre_feedforward", "post_feedforward"):
            shape = tensors["model.norm.weight"].shape
            tensors[f"model.layers.{n}.{name}_layernorm.weight"] = rng.normal(0, 0.3, shape)
    embedding = tensors["model.embed_tokens.weight"]
    embedding *= 10
    embedding += 0.1
    embedding[CONFIG["eos_token_id"]] += 0.2
    save_file({name: array.astype(jnp.bfloat16) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder
