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
  constexpr std::array<const char*, 2> outputs{"probabilities", "top_indices"};
  const auto start = std::chrono::steady_clock::now();
  auto results =
      session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &image, inputs.size(), outputs.data(), outputs.size());
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;

  const auto* probabilities = results[0].GetTensorData<float>();
  const auto* indices = results[1].GetTensorData<std::int64_t>();
  Answer answer{{}, took.count()};
  const auto count = results[1].GetTensorTypeAndShapeInfo().GetElementCount();
  for (std::size_t place = 0; place < count; ++place) {
    answer.guesses.push_back({indices[place], probabilities[indices[place]]});
  }
  return answer;
}

std::string Classifier::metadata(const std::string& name) const {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto value = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(("vitexport." + name).c_str(), allocator);
  return value ? value.get() : "";
}
