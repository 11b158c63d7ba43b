// Mutations of valid files with a fixed seed: of their bytes, and of the JSON inside them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace vivarium::test {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  uint64_t Below(uint64_t limit) { return random_() % limit; }
  bool Chance(uint64_t one_in) { return Below(one_in) == 0; }

  // One to four of: flipped bits, other bytes, an extreme number in place of 1, 2, 4 or 8 bytes, a
  // cut end, a removed, repeated or inserted run; inside [begin, end).
  std::string Bytes(std::string text, size_t begin, size_t end);
  std::string Bytes(const std::string& text) { return Bytes(text, 0, text.size()); }
  // One to three nodes replaced, removed, or renamed, anywhere in the document.
  nlohmann::json Json(nlohmann::json document);
  // A number that lies near `value` or at the edge of a type.
  int64_t Number(int64_t value);

 private:
  nlohmann::json Value(const nlohmann::json& old);

  std::mt19937_64 random_;
};

}  // namespace vivarium::test
