// The part of ONNX Runtime's Java API (1.29) that the written project uses.
package ai.onnxruntime;

import java.util.Map;

public final class OnnxModelMetadata {
  private final Map<String, String> custom;

  OnnxModelMetadata(Map<String, String> custom) {
    this.custom = custom;
  }

  public Map<String, String> getCustomMetadata() {
    return custom;
  }
}
