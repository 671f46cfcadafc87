"""Holds estimators against a latent policy that is small enough to enumerate (docs/method.md §2, §3).

Shapes here have letters beside those of the package's glossary:

    Z   rationales that the policy can give
    F   its parameters, 3 Z logits
    U   atoms: what one rollout can be
    W   pools of M rollouts
"""
