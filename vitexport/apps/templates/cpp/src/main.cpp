// Pictures enter as file names; their classes, labels or values leave on stdout.

#include <cstdio>
#include <exception>

#include "classifier.hpp"
#include "labels.hpp"
#include "picture.hpp"

int main(int count, char** words) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s model.onnx PICTURE...\n", words[0]);
    return 2;
  }
  int failures = 0;
  try {
    Classifier classifier(words[1]);
    const auto labels = read_labels(classifier.metadata("labels"));
    for (int index = 2; index < count; ++index) {
      try {
        const Answer answer = classifier.classify(read_picture(words[index]));
        std::printf("%s  (%.1f ms)\n", words[index], answer.milliseconds);
        const auto name = [&labels](std::size_t place) {
          return place < labels.size() ? labels[place] : std::to_string(place);
        };
        for (const Guess& guess : answer.guesses) {
          const std::string label = name(static_cast<std::size_t>(guess.index));
          std::printf("  %6.2f %%  %s\n", guess.probability * 100.0, label.c_str());
        }
        for (std::size_t place = 0; place < answer.values.size(); ++place) {
          std::printf("  %.5g  %s\n", static_cast<double>(answer.values[place]), name(place).c_str());
        }
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        failures = 1;
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return failures;
}
