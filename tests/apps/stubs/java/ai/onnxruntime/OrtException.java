// The part of ONNX Runtime's Java API (1.29) that the written project uses.
package ai.onnxruntime;

public class OrtException extends Exception {
  OrtException(String message) {
    super(message);
  }
}
