"""The PyTorch backend: CUDA, MPS or CPU."""

import os

# Read when torch is loaded: threads that wait for each other sleep instead of spinning. Beside any
# other busy program a spinning pair takes five to ten times as long as a sleeping one, and as many
# times the processor's seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
