"""The training loops, checkpoints and averaged weights."""
