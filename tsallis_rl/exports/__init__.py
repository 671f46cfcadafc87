"""Exports of a run's model for others: a pretrained folder or an adapter, with a model card."""
