"""Commands of `trimvit` beside `serve` and those of models.training. torch is imported by what needs it, when
it runs."""
