// The part of ONNX Runtime's Java API (1.29) that the written project uses.
package ai.onnxruntime;

public abstract class OnnxTensorLike implements OnnxValue {
  OnnxTensorLike() {}
}
