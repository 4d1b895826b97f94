"""Training: one Accelerate loop for the tokenizer and the priors, exact checkpoints, flat settings."""
