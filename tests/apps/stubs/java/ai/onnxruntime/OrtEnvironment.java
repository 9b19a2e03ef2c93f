// The part of ONNX Runtime's Java API (1.29) that the written project uses.
package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
  private static final OrtEnvironment ONLY = new OrtEnvironment();

  private OrtEnvironment() {}

  public static OrtEnvironment getEnvironment() {
    return ONLY;
  }

  public OrtSession createSession(byte[] modelArray, OrtSession.SessionOptions options) throws OrtException {
    return new OrtSession(modelArray, options);
  }

  @Override
  public void close() {}
}
