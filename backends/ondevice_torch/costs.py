"""What torch takes, measured by `scripts/plan_accuracy.py`; imports nothing of it. Read beside
`ondevice_mlx/costs.py`.
"""

from ondevice.seam.costs import Costs

COSTS = Costs(
    # Of what SmolLM2's blocks read and write, at rows of 256 tokens (float32): 0.75 is kept; on a
    # CPU the C library's heap holds twice as much (`common/allocator.py`).
    activations=0.9,
    activations_cpu=1.9,
    process=250 << 20,
    begun=80 << 20,
    kept=0.9,
    exact=0.0,
    scores=0.0,
    biased=1.6,  # no kernel for it: as products
    shared=0.55,
    logits=2.7,
    passing=0.0,  # it lies in what later blocks have left
    again=2.5,  # what is computed again does not fit into the holes that it left
    # The C library's heap: what an earlier block leaves lies between what others keep, and the
    # optimizer's moments lie in such holes since the first step. Of 135 M parameters 0.5 GB.
    gradients_beside=True,
    heap=True,
    update=0.7,
    saving=1.0,
    grows=1.0,  # all layers are copied before the first is freed
    low=0.2,
    shards=True,
)
