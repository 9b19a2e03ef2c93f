"""Input: a reference and the shipped artifact; output: checks and measurements of accuracy, numerics and latency."""
