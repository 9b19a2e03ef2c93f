// The part of ONNX Runtime's Java API (1.29) that the written project uses, with tensors that live in Java's memory.
package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Arrays;

public class OnnxTensor extends OnnxTensorLike {
  /** How many are not closed yet: with the library itself those that are forgotten are leaks. */
  static int open;

  final OnnxJavaType type;
  final long[] shape;
  private final Buffer values;
  private boolean closed;

  OnnxTensor(OnnxJavaType type, Buffer values, long... shape) {
    this.type = type;
    this.values = values;
    this.shape = shape;
    open++;
  }

  public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
      throws OrtException {
    if (Arrays.stream(shape).reduce(1, (size, side) -> size * side) != data.remaining()) {
      throw new OrtException(data.remaining() + " bytes for the shape " + Arrays.toString(shape));
    }
    return new OnnxTensor(type, data.slice(), shape.clone());
  }

  /** The bytes as numbers of 0 to 255. */
  int[] unsigned() {
    int[] numbers = new int[values.remaining()];
    Arrays.setAll(numbers, place -> ((ByteBuffer) usable()).get(place) & 255);
    return numbers;
  }

  public FloatBuffer getFloatBuffer() {
    return type == OnnxJavaType.FLOAT ? (FloatBuffer) usable() : null;
  }

  public LongBuffer getLongBuffer() {
    return type == OnnxJavaType.INT64 ? (LongBuffer) usable() : null;
  }

  @Override
  public void close() {
    usable();
    closed = true;
    open--;
  }

  private Buffer usable() {
    if (closed) {
      throw new IllegalStateException("the tensor is closed");
    }
    return values;
  }
}
