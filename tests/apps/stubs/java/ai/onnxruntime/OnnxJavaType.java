// The part of ONNX Runtime's Java API (1.29) that the written project uses, and the types of what its stand-in answers.
package ai.onnxruntime;

public enum OnnxJavaType { FLOAT, INT64, UINT8 }
