#include "classifier.hpp"

#include <array>
#include <chrono>
#include <stdexcept>

#ifdef _WIN32
#include <filesystem>
#endif

Classifier::Classifier(const std::string& model, int threads) : environment_(ORT_LOGGING_LEVEL_WARNING, "classifier") {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
#ifdef _WIN32
  session_ = Ort::Session(environment_, std::filesystem::u8path(model).c_str(), options);
#else
  session_ = Ort::Session(environment_, model.c_str(), options);
#endif
  regression_ = metadata("task") == "\"regression\"";
  if (metadata("task") == "\"multi-label\"") least_ = std::stof(metadata("threshold"));
}

Answer Classifier::classify(const Picture& picture) {
  if (picture.height < 1 || picture.width < 1 ||
      picture.rgb.size() != static_cast<std::size_t>(picture.height) * static_cast<std::size_t>(picture.width) * 3) {
    throw std::invalid_argument("A picture has height x width x 3 bytes.");
  }
  const std::array<std::int64_t, 4> shape{1, picture.height, picture.width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  // ONNX Runtime asks for memory that may be written, and does not write to an input.
  auto* pixels = const_cast<std::uint8_t*>(picture.rgb.data());
  const Ort::Value image =
      Ort::Value::CreateTensor<std::uint8_t>(memory, pixels, picture.rgb.size(), shape.data(), shape.size());

  constexpr std::array<const char*, 1> inputs{"image"};
  const std::vector<const char*> outputs =
      regression_ ? std::vector<const char*>{"values"} : std::vector<const char*>{"probabilities", "top_indices"};
  const auto start = std::chrono::steady_clock::now();
  auto results =
      session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &image, inputs.size(), outputs.data(), outputs.size());
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;

  Answer answer{{}, {}, took.count()};
  if (regression_) {
    const auto* values = results[0].GetTensorData<float>();
    answer.values.assign(values, values + results[0].GetTensorTypeAndShapeInfo().GetElementCount());
    return answer;
  }
  const auto* probabilities = results[0].GetTensorData<float>();
  const auto* indices = results[1].GetTensorData<std::int64_t>();
  const auto count = results[1].GetTensorTypeAndShapeInfo().GetElementCount();
  for (std::size_t place = 0; place < count; ++place) {
    const float probability = probabilities[indices[place]];
    if (probability >= least_) answer.guesses.push_back({indices[place], probability});
  }
  return answer;
}

std::string Classifier::metadata(const std::string& name) const {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto value = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(("vitexport." + name).c_str(), allocator);
  return value ? value.get() : "";
}
