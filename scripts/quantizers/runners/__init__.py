"""Input: one module a tool, run in the environment of that tool: a float ONNX; output: a quantized one."""
