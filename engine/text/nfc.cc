#include "engine/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "engine/text/utf8.h"

namespace vivarium::engine {
namespace {

// Room for one character's full canonical decomposition (the longest has 4).
constexpr int kMaxDecomposition = 16;

// Whether normalization neither changes `code` nor joins it with what stands before it, so that a
// segment may begin there and nothing before it matters.
bool IsInert(char32_t code) {
  if (code < 0x300) return true;
  // One before the trailing Jamo. It composes with nothing, but utf8proc 2.8 takes it for one and
  // drops it after a syllable; so it is kept out of segments.
  if (code == 0x11A7) return true;
  if (code >= 0x1100 && code <= 0x11FF) return false;  // conjoining Jamo compose by arithmetic
  if (code >= 0xAC00 && code <= 0xD7A3) return false;  // and so do the syllables
  const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(code));
  if (property->combining_class != 0) return false;
  // In utf8proc's tables an index of 0x8000 or more is that of a second character of a pair.
  if (property->comb_index != UINT16_MAX && property->comb_index >= 0x8000) return false;
  return property->decomp_seqindex == UINT16_MAX || property->decomp_type != 0;
}

uint8_t CombiningClass(utf8proc_int32_t code) {
  return static_cast<uint8_t>(utf8proc_get_property(code)->combining_class);
}

// Sorts each run of combining marks by class. utf8proc's own reordering is an exchange sort, whose
// time is quadratic in a run's length.
void ReorderMarks(std::vector<utf8proc_int32_t>* codes) {
  size_t begin = 0;
  while (begin < codes->size()) {
    if (CombiningClass((*codes)[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin;
    while (end < codes->size() && CombiningClass((*codes)[end]) != 0) ++end;
    std::stable_sort(codes->begin() + static_cast<ptrdiff_t>(begin),
                     codes->begin() + static_cast<ptrdiff_t>(end),
                     [](utf8proc_int32_t a, utf8proc_int32_t b) {
                       return CombiningClass(a) < CombiningClass(b);
                     });
    begin = end;
  }
}

// A segment from one inert character to the next.
void NormalizeSegment(std::string_view text, std::vector<utf8proc_int32_t>* codes,
                      std::string* out) {
  codes->clear();
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    utf8proc_int32_t parts[kMaxDecomposition];
    int boundclass = 0;
    const utf8proc_ssize_t num_parts =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code), parts, kMaxDecomposition,
                                UTF8PROC_DECOMPOSE, &boundclass);
    codes->insert(codes->end(), parts, parts + num_parts);
    pos += c.num_bytes;
  }
  ReorderMarks(codes);
  const utf8proc_ssize_t num_codes =
      utf8proc_normalize_utf32(codes->data(), static_cast<utf8proc_ssize_t>(codes->size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  for (utf8proc_ssize_t i = 0; i < num_codes; ++i) {
    AppendUtf8(static_cast<char32_t>((*codes)[i]), out);
  }
}

}  // namespace

void AppendNfc(std::string_view text, std::string* out) {
  std::vector<utf8proc_int32_t> codes;
  size_t copied = 0;      // everything before is in *out
  size_t last_inert = 0;  // the last character before `pos`, if inert
  size_t pos = 0;
  while (pos < text.size()) {
    Utf8Char c = DecodeUtf8(text.substr(pos));
    if (IsInert(c.code)) {
      last_inert = pos;
      pos += c.num_bytes;
      continue;
    }
    // The segment: from the inert character before up to the next one.
    const size_t begin = pos > copied ? last_inert : pos;
    while (pos < text.size()) {
      c = DecodeUtf8(text.substr(pos));
      if (IsInert(c.code)) break;
      pos += c.num_bytes;
    }
    out->append(text.substr(copied, begin - copied));
    NormalizeSegment(text.substr(begin, pos - begin), &codes, out);
    copied = pos;
  }
  out->append(text.substr(copied));
}

}  // namespace vivarium::engine
