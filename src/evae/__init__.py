"""ExpressionVAE: discrete-latent generative models for single-cell perturbation prediction."""
