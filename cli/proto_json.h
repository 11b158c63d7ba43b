// Protobuf messages as JSON for scripts: field names as in the .proto files, 64-bit integers as
// numbers, durations as seconds, timestamps as RFC 3339 text, enumerators in small letters. Every
// scalar is there, set or not; absent `optional` scalars and messages are left out.
// (Protobuf's own JSON writes 64-bit integers as strings, which no script expects.)
#pragma once

#include "cli/output.h"
#include "google/protobuf/message.h"

namespace vivarium::cli {

Json ToJson(const google::protobuf::Message& message);

// Of a repeated field or a vector.
template <typename Messages>
Json ToJsonArray(const Messages& messages) {
  Json array = Json::array();
  for (const google::protobuf::Message& message : messages) array.push_back(ToJson(message));
  return array;
}

}  // namespace vivarium::cli
