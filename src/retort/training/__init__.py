"""Learning: batches, the loop, checkpoints, the stages of a run."""
