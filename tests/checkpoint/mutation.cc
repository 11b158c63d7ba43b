#include "tests/checkpoint/mutation.h"

#include <algorithm>
#include <vector>

namespace vivarium::test {
namespace {

using nlohmann::json;

// The nodes below the root, as (parent, key or index).
struct Node {
  json* parent;
  std::string key;
  size_t index;
};

std::vector<Node> Nodes(json* document) {
  std::vector<Node> nodes;
  std::vector<json*> open = {document};
  while (!open.empty()) {
    json* parent = open.back();
    open.pop_back();
    if (parent->is_object()) {
      for (auto& [key, child] : parent->items()) {
        nodes.push_back({parent, key, 0});
        open.push_back(&child);
      }
    } else if (parent->is_array()) {
      for (size_t i = 0; i < parent->size(); ++i) {
        nodes.push_back({parent, "", i});
        open.push_back(&(*parent)[i]);
      }
    }
  }
  return nodes;
}

}  // namespace

std::string Mutator::Bytes(std::string text, size_t begin, size_t end) {
  for (uint64_t i = 0, count = 1 + Below(4); i < count; ++i) {
    end = std::min(end, text.size());
    if (begin >= end) break;
    const size_t at = begin + Below(end - begin);
    const size_t run = std::min<size_t>(1 + Below(16), end - at);
    switch (Below(7)) {
      case 0:
        text[at] = static_cast<char>(text[at] ^ (1 << Below(8)));
        break;
      case 1:
        text[at] = static_cast<char>(Below(256));
        break;
      case 2: {
        const uint64_t extreme = Chance(2) ? ~uint64_t{0} >> Below(64) : uint64_t{1} << Below(64);
        const size_t width = std::min<size_t>(size_t{1} << Below(4), end - at);
        for (size_t j = 0; j < width; ++j) text[at + j] = static_cast<char>(extreme >> (8 * j));
        break;
      }
      case 3:
        if (Chance(4)) text.resize(at);
        break;
      case 4:
        text.erase(at, run);
        break;
      case 5:
        text.insert(at, text.substr(at, run));
        break;
      default:
        text.insert(at, std::string(run, static_cast<char>(Below(256))));
    }
  }
  return text;
}

int64_t Mutator::Number(int64_t value) {
  const uint64_t unsigned_value = static_cast<uint64_t>(value);
  const uint64_t choices[] = {unsigned_value + 1,
                              unsigned_value - 1,
                              unsigned_value * 2,
                              unsigned_value / 2,
                              unsigned_value + 4,
                              0,
                              1,
                              uint64_t{1} << Below(64),
                              ~uint64_t{0} >> Below(64),
                              Below(64)};
  return static_cast<int64_t>(choices[Below(std::size(choices))]);
}

json Mutator::Value(const json& old) {
  if (old.is_number_integer() && !Chance(4)) return Number(old.get<int64_t>());
  switch (Below(10)) {
    case 0:
      return nullptr;
    case 1:
      return Chance(2);
    case 2:
      return static_cast<uint64_t>(Number(0));
    case 3:
      return -1.5e300;
    case 4:
      return "F32";
    case 5:
      return std::string(1 + Below(40), 'x');
    case 6:
      return json::array({old, old});
    case 7:
      return json::object({{"x", old}});
    case 8:
      return json::array();
    default:
      return "BF16";
  }
}

json Mutator::Json(json document) {
  for (uint64_t i = 0, count = 1 + Below(3); i < count; ++i) {
    const std::vector<Node> nodes = Nodes(&document);
    if (nodes.empty()) break;
    const Node& node = nodes[Below(nodes.size())];
    const bool is_member = node.parent->is_object();
    json& value = is_member ? (*node.parent)[node.key] : (*node.parent)[node.index];
    if (!Chance(4)) {
      value = Value(value);
    } else if (!is_member) {
      node.parent->erase(node.index);
    } else {
      json old = value;
      node.parent->erase(node.key);
      if (Chance(2)) (*node.parent)[Bytes(node.key.empty() ? "k" : node.key)] = std::move(old);
    }
  }
  return document;
}

}  // namespace vivarium::test
