"""A run's model written for others: as a pretrained folder or as an adapter, with a model card."""
