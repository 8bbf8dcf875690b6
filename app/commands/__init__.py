"""The commands of `trimvit` except `serve` and training. Commands that need torch import it when they run."""
