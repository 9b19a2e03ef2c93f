// The part of ONNX Runtime's Java API (1.29) that the written project uses.
package ai.onnxruntime;

public interface OnnxValue extends AutoCloseable {
  @Override
  void close();
}
