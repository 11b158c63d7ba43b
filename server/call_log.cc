#include "server/call_log.h"

#include <spdlog/spdlog.h>

#include "server/errors.h"
#include "server/metrics.h"

namespace vivarium::server {
namespace {

bool IsOurFault(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

}  // namespace

void ReportCall(const Parts& parts, const CallReport& report) {
  parts.metrics->CountRpc(report.method, report.status);
  if (absl::IsResourceExhausted(report.status)) {
    parts.metrics->CountRefusal(report.method, ReasonOf(report.status));
  }
  const double duration_ms = absl::ToDoubleMilliseconds(report.duration);
  const std::string code = absl::StatusCodeToString(report.status.code());
  if (report.status.ok()) {
    parts.log->info("rpc={} code={} ms={:.1f}{}", report.method, code, duration_ms, report.fields);
  } else if (IsOurFault(report.status.code())) {
    parts.log->warn("rpc={} code={} reason={} ms={:.1f}{} message=\"{}\"", report.method, code,
                    ReasonOf(report.status), duration_ms, report.fields,
                    std::string(report.status.message()));
  } else {
    parts.log->info("rpc={} code={} reason={} ms={:.1f}{}", report.method, code,
                    ReasonOf(report.status), duration_ms, report.fields);
  }
}

}  // namespace vivarium::server
