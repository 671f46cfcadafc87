"""A latent policy small enough to enumerate, and the exact answers that it gives (METHOD §2, §3)."""
