// Little-endian bytes: a writer that appends to a string, and a reader that never trusts a length.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

namespace vivarium::statestore {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian");

// XXH3, 64 bits, seed 0.
uint64_t Checksum(std::string_view bytes);

// The same of bytes that come in pieces. Not thread-safe.
class RunningChecksum {
 public:
  RunningChecksum();
  void Update(std::string_view bytes);
  // Of everything so far; may go on after.
  uint64_t Digest() const;

 private:
  struct Free {
    void operator()(void* state) const;
  };
  std::unique_ptr<void, Free> state_;  // XXH3_state_t
};

class ByteWriter {
 public:
  explicit ByteWriter(std::string* out) : out_(out) {}

  template <typename T>
  void Number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out_->append(bytes, sizeof(T));
  }
  // u32 length, then the bytes.
  void String(std::string_view bytes) {
    Number<uint32_t>(static_cast<uint32_t>(bytes.size()));
    out_->append(bytes);
  }

 private:
  std::string* out_;
};

// Reads from a view that must outlive it. After the first read past the end, or of a length over
// its bound, everything reads as zero and ok() is false: check it once, at the end, and before
// anything that was read sizes an allocation.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T Number() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    if (!Has(sizeof(T))) return value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }
  // A u32 length of at most `max_bytes`, then the bytes.
  std::string String(size_t max_bytes);
  // A u32 count of at most `max_count` whose elements, `element_bytes` each, can still follow;
  // else 0 and not ok().
  uint32_t Count(size_t max_count, size_t element_bytes);
  // Raw bytes, a view into the source.
  std::string_view Bytes(size_t num_bytes);

  bool ok() const { return ok_; }
  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  void Fail() { ok_ = false; }

 private:
  bool Has(size_t num_bytes) {
    if (!ok_ || num_bytes > remaining()) ok_ = false;
    return ok_;
  }

  std::string_view bytes_;
  size_t offset_ = 0;
  bool ok_ = true;
};

}  // namespace vivarium::statestore
