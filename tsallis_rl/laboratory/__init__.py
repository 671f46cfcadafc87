"""Checks estimators against a latent policy that is small enough to enumerate (docs/method.md §2, §3).

Shapes here use these letters besides those of the package's glossary:

    Z   rationales that the policy can produce
    F   its parameters, 3 Z logits
    U   atoms: the distinct rollouts of a policy
    W   pools of M rollouts
"""
