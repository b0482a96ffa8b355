"""What a model does with held-out documents, with intervals, and whether it does better than another."""
