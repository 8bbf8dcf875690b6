"""The commands of `trimvit` beside `serve` and training. Who needs torch imports it when it runs."""
