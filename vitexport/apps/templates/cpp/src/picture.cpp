#include "picture.hpp"

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "orientation.hpp"

#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

namespace {

// From 5 on EXIF's orientations have rows and columns exchanged; the others are mirrored, upside down, or both.
Picture upright(Picture picture, int orientation) {
  if (orientation == 1) return picture;
  const bool exchanged = orientation >= 5;
  const bool down = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool mirrored = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  Picture turned{exchanged ? picture.width : picture.height, exchanged ? picture.height : picture.width, {}};
  turned.rgb.reserve(picture.rgb.size());
  for (std::int64_t y = 0; y < turned.height; ++y) {
    for (std::int64_t x = 0; x < turned.width; ++x) {
      const std::int64_t row = exchanged ? x : y;
      const std::int64_t column = exchanged ? y : x;
      const std::int64_t from_row = down ? picture.height - 1 - row : row;
      const std::int64_t from_column = mirrored ? picture.width - 1 - column : column;
      const auto pixel = picture.rgb.begin() + (from_row * picture.width + from_column) * 3;
      turned.rgb.insert(turned.rgb.end(), pixel, pixel + 3);
    }
  }
  return turned;
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  try {
    std::ifstream stream(path, std::ios::binary);
    std::vector<std::uint8_t> file{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    if (stream && !file.empty()) return file;
  } catch (const std::ios_base::failure&) {
    // A folder can be opened, and not be read.
  }
  throw std::runtime_error(path + ": cannot be read");
}

}  // namespace

Picture read_picture(const std::string& path) {
  const std::vector<std::uint8_t> file = read_file(path);
  if (file.size() > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    throw std::runtime_error(path + ": is too large");
  }
  int width = 0;
  int height = 0;
  int channels = 0;
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
      stbi_load_from_memory(file.data(), static_cast<int>(file.size()), &width, &height, &channels, 3), stbi_image_free);
  if (!pixels) {
    throw std::runtime_error(path + ": " + stbi_failure_reason());
  }
  const auto size = static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3;
  return upright({height, width, {pixels.get(), pixels.get() + size}}, exif_orientation(file));
}
