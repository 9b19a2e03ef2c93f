// The model's labels, a JSON list of texts, enter; the texts leave.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// The file holds its texts in UTF-8; only what JSON must escape is escaped in it. "null" and "" give no label.
inline std::vector<std::string> read_labels(const std::string& json) {
  std::vector<std::string> labels;
  for (std::size_t at = 0; at < json.size(); ++at) {
    if (json[at] != '"') continue;
    std::string label;
    for (++at; at < json.size() && json[at] != '"'; ++at) {
      if (json[at] != '\\') {
        label += json[at];
        continue;
      }
      if (++at >= json.size()) break;
      switch (json[at]) {
        case 'b': label += '\b'; break;
        case 'f': label += '\f'; break;
        case 'n': label += '\n'; break;
        case 'r': label += '\r'; break;
        case 't': label += '\t'; break;
        case 'u':
          if (at + 4 >= json.size()) throw std::invalid_argument("The labels are cut short.");
          // Control characters only; all others stand as they are.
          label += static_cast<char>(std::stoi(json.substr(at + 1, 4), nullptr, 16));
          at += 4;
          break;
        default: label += json[at];
      }
    }
    labels.push_back(label);
  }
  return labels;
}
