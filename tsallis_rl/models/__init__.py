"""One decoder for every supported model, and the place where log-probabilities are computed."""

from tsallis_rl.models.attention import KeyValues, written
from tsallis_rl.models.decoder import Decoder, bind, by_layer, initialize
from tsallis_rl.models.log_probs import output_logits, token_log_probs, weighted_log_probs
from tsallis_rl.models.sizes import SIZES, Architecture
from tsallis_rl.models.slots import Seats, rows_of, seats_for

__all__ = [
    "SIZES",
    "Architecture",
    "Decoder",
    "KeyValues",
    "Seats",
    "bind",
    "by_layer",
    "initialize",
    "output_logits",
    "rows_of",
    "seats_for",
    "token_log_probs",
    "weighted_log_probs",
    "written",
]
