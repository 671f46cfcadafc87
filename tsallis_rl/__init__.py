"""Trains reasoning language models from answers alone on the Tsallis loss continuum (docs/method.md).

Shapes are written with one letter per dimension. Docstrings use these letters without further explanation:

    P   prompts of a batch, one group of rollouts each
    M   rollouts per prompt
    T   tokens of a rollout, or of a row of an update
    T0  tokens of a prompt
    A   tokens of an answer
    L   token ids of end-of-think
    J   tokens of the joint, the fixed text between rationale and answer
    B   rows: rollouts of a compacted batch, packed rows of an update
    C   shards: equal parts of the prompts, one per device
    R   slots per prompt, through which its rollouts read its keys
    S   keys that attention sees
    V   vocabulary
    D   width of the residual stream
    N   layers
    H   query heads
    K   key-value heads
    G   query heads per key-value head, H / K
    h   width of a head
    r   rank of an adapter
    E   token ids that end an answer
"""

__version__ = "0.1.0"
