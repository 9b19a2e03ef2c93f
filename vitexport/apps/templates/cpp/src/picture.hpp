// A picture file enters; its pixels leave.
#pragma once

#include <string>

#include "classifier.hpp"

// JPEG, PNG and what else stb_image reads, upright by the EXIF orientation of a JPEG. Throws std::runtime_error.
Picture read_picture(const std::string& path);
