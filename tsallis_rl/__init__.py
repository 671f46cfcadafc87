"""Training reasoning models from answers alone, on the Tsallis loss continuum (arXiv 2604.25907)."""
