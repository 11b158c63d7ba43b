// Unicode normalization form C (UAX #15).
#pragma once

#include <string>
#include <string_view>

namespace vivarium::engine {

// `text` (valid UTF-8) in NFC, appended to `*out`. Text that is surely normalized already (all
// below U+0300, most above) is copied; the rest costs O(n log n), also for hostile runs of marks.
void AppendNfc(std::string_view text, std::string* out);

}  // namespace vivarium::engine
