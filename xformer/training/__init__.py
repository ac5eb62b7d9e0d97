"""Training: state, the jit-compiled steps, checkpoints, the loop and its records."""
