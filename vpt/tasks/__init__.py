"""Lightning: one task for every objective, its callbacks, and the training of the starters."""
