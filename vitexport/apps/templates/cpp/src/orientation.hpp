// Bytes of a picture file enter; how its camera was held leaves, as the number from 1 to 8 that EXIF has for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// 1, upright, where the file is no JPEG, says nothing or is damaged there. EXIF 2.3 is a TIFF header in JPEG's segment APP1.
inline int exif_orientation(const std::vector<std::uint8_t>& file) {
  const auto byte = [&](std::size_t at) { return at < file.size() ? std::size_t{file[at]} : 0; };
  const auto big = [&](std::size_t at) { return byte(at) << 8 | byte(at + 1); };
  if (big(0) != 0xFFD8) return 1;
  for (std::size_t at = 2; at + 4 < file.size() && byte(at) == 0xFF && byte(at + 1) != 0xDA; at += 2 + big(at + 2)) {
    while (byte(at + 1) == 0xFF) ++at;  // as many bytes may fill the space before a marker
    const std::size_t tiff = at + 10;
    // "Exif", two zeros, and then the byte order: "II" for little endian, "MM" for big endian.
    if (byte(at + 1) != 0xE1 || big(at + 4) != 0x4578 || big(at + 6) != 0x6966) continue;
    const bool little = byte(tiff) == 'I';
    const auto two = [&](std::size_t place) { return little ? byte(place + 1) << 8 | byte(place) : big(place); };
    const auto four = [&](std::size_t place) {
      return little ? two(place + 2) << 16 | two(place) : two(place) << 16 | two(place + 2);
    };
    const std::size_t entries = tiff + four(tiff + 4);
    for (std::size_t index = 0; index < two(entries); ++index) {
      const std::size_t entry = entries + 2 + 12 * index;
      if (two(entry) == 0x0112) {
        const std::size_t value = two(entry + 8);
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
      }
    }
    return 1;
  }
  return 1;
}
