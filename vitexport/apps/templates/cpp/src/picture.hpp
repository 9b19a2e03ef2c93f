// A picture file enters; its pixels leave.
#pragma once

#include <string>

#include "classifier.hpp"

// JPEG, PNG and what else stb_image reads, as stored: EXIF orientation is not applied. Throws std::runtime_error.
Picture read_picture(const std::string& path);
