"""Graders: pure functions of (prediction, example) -> {metric: score in [0, 1]} (METHOD §6)."""

from tsallis_rl.tasks.base import Example


def finqa(prediction: str, example: Example) -> dict[str, float]:
    """Exact and substring match."""
    prediction = prediction.strip()
    return {"exact": float(prediction == example.answer), "substring": float(example.answer in prediction)}
