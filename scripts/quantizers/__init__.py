"""The parts of ``scripts/benchmark_quantizers``: models, images, tools, judgement and table, one a file."""
