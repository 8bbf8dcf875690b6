"""Fine-tuning and evaluation; never imported while serving."""
