// The part of ONNX Runtime's Java API (1.29) that the written project uses, with a stand-in for the library behind it. A
// model is text here: a line each for its probabilities and top_indices, or its values, which it answers to any picture, and for its
// metadata. A run prints the tensor that it was given. What the library or its documentation does not allow is refused.
package ai.onnxruntime;

import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;

public class OrtSession implements AutoCloseable {
  private final Map<String, String> model = new HashMap<>();
  private final SessionOptions options;
  private boolean closed;

  OrtSession(byte[] text, SessionOptions options) throws OrtException {
    for (String line : new String(text, StandardCharsets.UTF_8).split("\n")) {
      String[] words = line.split(" ", 2);
      model.put(words[0], words[1]);
    }
    this.options = options;
  }

  public OnnxModelMetadata getMetadata() throws OrtException {
    Map<String, String> custom = new HashMap<>(model);
    custom.keySet().removeIf(name -> !name.startsWith("vitexport."));
    return new OnnxModelMetadata(custom);
  }

  public Result run(Map<String, ? extends OnnxTensorLike> inputs, Set<String> requestedOutputs) throws OrtException {
    usable();
    if (!inputs.keySet().equals(Set.of("image"))) {
      throw new OrtException("the one input is image, not " + inputs.keySet());
    }
    OnnxTensor image = (OnnxTensor) inputs.get("image");
    if (image.type != OnnxJavaType.UINT8 || image.shape.length != 4 || image.shape[0] != 1 || image.shape[3] != 3) {
      throw new OrtException("no picture: " + image.type + " " + Arrays.toString(image.shape));
    }
    System.out.println(image.type + " " + Arrays.toString(image.shape) + " " + Arrays.toString(image.unsigned()));
    Map<String, OnnxValue> values = new HashMap<>();
    for (String name : requestedOutputs) {
      values.put(name, output(name));
    }
    return new Result(values);
  }

  private OnnxTensor output(String name) throws OrtException {
    if (name.equals("probabilities") || name.equals("values")) {
      double[] numbers = numbers(name);
      FloatBuffer values = FloatBuffer.allocate(numbers.length);
      Arrays.stream(numbers).forEach(number -> values.put((float) number));
      return new OnnxTensor(OnnxJavaType.FLOAT, values.rewind(), 1, numbers.length);
    }
    if (name.equals("top_indices")) {
      double[] numbers = numbers(name);
      LongBuffer values = LongBuffer.allocate(numbers.length);
      Arrays.stream(numbers).forEach(number -> values.put((long) number));
      return new OnnxTensor(OnnxJavaType.INT64, values.rewind(), 1, numbers.length);
    }
    throw new OrtException("no such output: " + name);
  }

  private double[] numbers(String name) {
    return Stream.of(model.get(name).split(" ")).mapToDouble(Double::parseDouble).toArray();
  }

  @Override
  public void close() throws OrtException {
    usable();
    if (OnnxTensor.open != 0) {
      throw new IllegalStateException(OnnxTensor.open + " tensors were not closed");
    }
    closed = true;
  }

  private void usable() {
    if (closed) {
      throw new IllegalStateException("the session is closed");
    }
    if (options.closed) {
      throw new IllegalStateException("the options were closed before the session that uses them");
    }
  }

  public static class SessionOptions implements AutoCloseable {
    private boolean closed;

    @Override
    public void close() {
      closed = true;
    }
  }

  public static class Result implements AutoCloseable {
    private final Map<String, OnnxValue> values;
    private boolean closed;

    Result(Map<String, OnnxValue> values) {
      this.values = values;
    }

    public Optional<OnnxValue> get(String key) {
      if (closed) {
        throw new IllegalStateException("the result is closed");
      }
      return Optional.ofNullable(values.get(key));
    }

    @Override
    public void close() {
      closed = true;
      values.values().forEach(OnnxValue::close);
    }
  }
}
