"""What MLX takes, measured by `scripts/plan_accuracy.py`; imports nothing of it. Read beside
`ondevice_torch/costs.py`.
"""

from ondevice.seam.costs import Costs

COSTS = Costs(
    # 1.5 and more of what SmolLM2's blocks read and write, attention's scores among it (CPU,
    # float32)
    activations=1.7,
    activations_cpu=1.7,
    process=70 << 20,
    begun=47 << 20,
    kept=1.1,
    exact=0.5,
    scores=1.5,
    biased=3.2,
    shared=1.5,
    logits=2.2,
    passing=1.2,
    again=2.6,
    # What a block has freed waits in MLX's cache for arrays of the same size, which gradients are not.
    gradients_beside=True,
    heap=False,
    update=0.7,
    saving=0.2,
    grows=0.0,  # each layer is freed once it is copied: nothing is computed before all is asked for
    low=0.0,
    shards=False,
)
