"""One decoder for every supported model, and the functions that compute log-probabilities."""

from tsallis_rl.models.attention import (
    KeyValues,
    RowCache,
    WriteAt,
    empty_cache,
    stored,
    uses_kernel,
    write_tokens,
)
from tsallis_rl.models.decoder import Context, Decoder, unstack_layers
from tsallis_rl.models.joined_layer import joined
from tsallis_rl.models.layer import Layer
from tsallis_rl.models.log_probs import Barred, bar_ids, output_logits, scored_log_probs, token_log_probs
from tsallis_rl.models.parameters import bind, initialize, parameter_shapes
from tsallis_rl.models.sizes import SIZES, Architecture
from tsallis_rl.models.slots import Slots, slots_for, take_rows

__all__ = [
    "SIZES",
    "Architecture",
    "Barred",
    "Context",
    "Decoder",
    "KeyValues",
    "Layer",
    "RowCache",
    "Slots",
    "WriteAt",
    "bar_ids",
    "bind",
    "empty_cache",
    "initialize",
    "joined",
    "output_logits",
    "parameter_shapes",
    "scored_log_probs",
    "slots_for",
    "stored",
    "take_rows",
    "token_log_probs",
    "unstack_layers",
    "uses_kernel",
    "write_tokens",
]
