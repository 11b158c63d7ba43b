// Errors: absl::Status with what google.rpc.ErrorInfo needs, and its way onto the wire.
//
// Reasons ride in the absl::Status as a payload; a status without one (from the engine or the
// store) gets the reason of its code. So every error leaves the server with an ErrorInfo.
#pragma once

#include <grpcpp/support/status.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class CallbackServerContext;
}  // namespace grpc

namespace vivarium::server {

inline constexpr std::string_view kErrorDomain = "vivarium";
inline constexpr size_t kMaxErrorMessageBytes = 1024;  // longer ones are cut
inline constexpr size_t kMaxErrorMetadataBytes = 256;  // of one value
inline constexpr absl::Duration kQueueFullRetryDelay = absl::Seconds(1);

using ErrorMetadata = std::initializer_list<std::pair<std::string_view, std::string_view>>;

// `status` with a reason (SCREAMING_SNAKE_CASE) and metadata; replaces an earlier one.
absl::Status WithReason(absl::Status status, std::string_view reason, ErrorMetadata metadata = {});
// `status` with a hint when a retry may succeed.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// INVALID_ARGUMENT, reason INVALID_FIELD: "FIELD is VALUE; expected EXPECTED".
absl::Status InvalidField(std::string_view field, std::string_view value,
                          std::string_view expected);
// UNAVAILABLE, reason DRAINING.
absl::Status DrainingError();
// UNAVAILABLE, reason DEVICE_FAULT: no new work, since the device has failed.
absl::Status DeviceFaultError();
// RESOURCE_EXHAUSTED with a retry delay: no room for more calls.
absl::Status BusyError(std::string_view what, size_t limit);

// What the engine answers to a stream that it doesn't take, with its reason and a retry delay.
absl::Status SubmitError(absl::Status status);

// The reason that `status` leaves with; "" when it is OK.
std::string ReasonOf(const absl::Status& status);

// For Finish(). Adds grpc-retry-pushback-ms to `context`'s trailing metadata where the status has a
// retry delay; `context` may be null.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace vivarium::server
