// A model for the stand-in of ONNX Runtime (stubs/java/ai/onnxruntime/OrtSession.java), a picture's width and its pixels,
// 0xAARRGGBB in decimal, enter; what the stand-in was given leaves, then the classifier's guesses and values, a line each. Run by
// test_android.py.

import android.graphics.Bitmap;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.example.classifier.Answer;
import org.example.classifier.Classifier;

public class Classify {
  public static void main(String[] words) throws Exception {
    int width = Integer.parseInt(words[1]);
    int[] pixels = Arrays.stream(words).skip(2).mapToInt(Integer::parseUnsignedInt).toArray();
    Bitmap bitmap = Bitmap.createBitmap(pixels, width, pixels.length / width, Bitmap.Config.ARGB_8888);
    try (Classifier classifier = new Classifier(Files.readAllBytes(Path.of(words[0])))) {
      Answer answer = classifier.classify(bitmap);
      answer.getGuesses().forEach(guess -> System.out.println(guess.getProbability() + " " + guess.getLabel()));
      answer.getValues().forEach(value -> System.out.println(value.getNumber() + " " + value.getLabel()));
      if (answer.getMilliseconds() <= 0) {
        throw new AssertionError(answer.getMilliseconds() + " ms");
      }
    }
  }
}
