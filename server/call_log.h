// What is logged and counted of every finished call.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/parts.h"

namespace vivarium::server {

struct CallReport {
  std::string_view method;
  absl::Status status;
  absl::Duration duration;
  std::string fields;  // " key=value"s; never a text, an id of a session or a state is fine
};

// One line, at info for calls that ended well or by the client's fault, at warn with the message
// for those by ours. A client's fault is logged without the message: it may quote what was sent.
void ReportCall(const Parts& parts, const CallReport& report);

}  // namespace vivarium::server
