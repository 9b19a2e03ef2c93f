// The part of ONNX Runtime's C++ API that the written project uses, declared and not defined: what compiles against it calls
// the API with the types that its documentation gives (onnxruntime_cxx_api.h, 1.17 and later).
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

struct OrtAllocator;
struct OrtMemoryInfo;
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_VERBOSE, ORT_LOGGING_LEVEL_INFO, ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtDeviceAllocator, OrtArenaAllocator };
enum OrtMemType { OrtMemTypeCPU, OrtMemTypeDefault };

namespace Ort {

struct Exception : std::exception {};

struct Env {
  Env(OrtLoggingLevel level, const char* name);
  Env(const Env&) = delete;
};

struct SessionOptions {
  SessionOptions();
  SessionOptions& SetIntraOpNumThreads(int count);
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};

struct AllocatorWithDefaultOptions {
  AllocatorWithDefaultOptions();
  operator OrtAllocator*();
};

struct AllocatedFree {
  OrtAllocator* allocator;
  void operator()(void* pointer) const;
};
using AllocatedStringPtr = std::unique_ptr<char, AllocatedFree>;

struct ModelMetadata {
  AllocatedStringPtr LookupCustomMetadataMapAllocated(const char* key, OrtAllocator* allocator) const;
};

struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType memory);
  operator const OrtMemoryInfo*() const noexcept;
};

struct TensorTypeAndShapeInfo {
  std::size_t GetElementCount() const;
};

struct Value {
  Value(Value&&) noexcept;
  Value(const Value&) = delete;
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo* info, T* data, std::size_t count, const std::int64_t* shape, std::size_t rank);
  template <typename T>
  const T* GetTensorData() const;
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};

struct Session {
  explicit Session(std::nullptr_t);
  Session(const Env& env, const char* path, const SessionOptions& options);
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs, std::size_t input_count,
                         const char* const* output_names, std::size_t output_count);
  ModelMetadata GetModelMetadata() const;
};

}  // namespace Ort
