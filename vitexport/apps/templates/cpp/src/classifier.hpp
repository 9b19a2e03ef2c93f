// Pixels enter; classes, labels or values leave. Resizing, cropping, normalization, probabilities and ranking are in the model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

struct Picture {
  std::int64_t height;
  std::int64_t width;
  std::vector<std::uint8_t> rgb;  // row by row
};

struct Guess {
  std::int64_t index;
  float probability;  // 0 to 1
};

struct Answer {
  std::vector<Guess> guesses;  // classes, likeliest first; or the labels that the picture has, none or several
  std::vector<float> values;   // of a regression, in the unit that it was trained with
  double milliseconds;
};

class Classifier {
 public:
  // `threads` 0: one for each core. Throws Ort::Exception where the model cannot be loaded.
  explicit Classifier(const std::string& model, int threads = 0);

  // Safe from several threads at once. Throws std::invalid_argument where the picture's sizes contradict each other.
  Answer classify(const Picture& picture);

  // JSON, as vitexport wrote it into the file: "labels", "preprocess", "model"; empty where there is none.
  std::string metadata(const std::string& name) const;

 private:
  Ort::Env environment_;
  Ort::Session session_{nullptr};
  bool regression_ = false;
  float least_ = 0;  // from this probability on a label is true; classes are ranked whatever theirs is
};
