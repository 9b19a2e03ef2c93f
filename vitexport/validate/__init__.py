"""A reference and the shipped artifact enter; checks and measurements of accuracy, numerics and latency leave."""
