"""One module a tool, run in the environment of that tool: a float ONNX enters, a quantized one leaves."""
