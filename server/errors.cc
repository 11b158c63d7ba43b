#include "server/errors.h"

#include <grpcpp/server_context.h>

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/runtime/engine.h"
#include "engine/text/utf8.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "statestore/quota.h"

namespace vivarium::server {
namespace {

constexpr absl::string_view kInfoUrl = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr absl::string_view kRetryUrl = "type.googleapis.com/google.rpc.RetryInfo";

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

// At most `max_bytes` of valid UTF-8: values may be anything that a client sent.
std::string Presentable(std::string_view text, size_t max_bytes) {
  std::string valid;
  const bool is_cut = text.size() > max_bytes;
  if (is_cut) text = text.substr(0, max_bytes - 3);
  engine::AppendValidUtf8(text, &valid);
  if (is_cut) valid += "...";
  return valid;
}

// For errors of the engine and the store, which know no reasons.
std::string_view DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_FIELD";
    case absl::StatusCode::kOutOfRange:
      return "OUT_OF_RANGE";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case absl::StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case absl::StatusCode::kAborted:
      return "CONCURRENT_WRITE";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    case absl::StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    default:
      return "INTERNAL";
  }
}

google::rpc::ErrorInfo InfoOf(const absl::Status& status) {
  google::rpc::ErrorInfo info;
  const auto payload = status.GetPayload(kInfoUrl);
  const auto quota = statestore::QuotaExceededOf(status);
  if (!payload.has_value() && quota.has_value()) {
    info.set_reason("QUOTA_EXCEEDED");
    info.set_domain(std::string(kErrorDomain));
    auto& metadata = *info.mutable_metadata();
    metadata["tenant"] = quota->tenant;
    metadata["what"] = quota->what;
    metadata["used"] = std::to_string(quota->used);
    metadata["reserved"] = std::to_string(quota->reserved);
    metadata["asked"] = std::to_string(quota->asked);
    metadata["limit"] = std::to_string(quota->limit);
  } else if (!payload.has_value() || !info.ParseFromString(std::string(*payload))) {
    info.Clear();
    info.set_reason(std::string(DefaultReason(status.code())));
    info.set_domain(std::string(kErrorDomain));
  }
  return info;
}

}  // namespace

absl::Status WithReason(absl::Status status, std::string_view reason, ErrorMetadata metadata) {
  if (status.ok()) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kErrorDomain));
  for (const auto& [key, value] : metadata) {
    (*info.mutable_metadata())[std::string(key)] = Presentable(value, kMaxErrorMetadataBytes);
  }
  status.SetPayload(kInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  if (status.ok()) return status;
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(delay - absl::Seconds(absl::ToInt64Seconds(delay)))));
  status.SetPayload(kRetryUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Status InvalidField(std::string_view field, std::string_view value,
                          std::string_view expected) {
  const std::string shown = Presentable(value, kMaxErrorMetadataBytes);
  return WithReason(absl::InvalidArgumentError(
                        absl::StrCat(Absl(field), " is ", shown, "; expected ", Absl(expected))),
                    "INVALID_FIELD", {{"field", field}, {"value", shown}});
}

absl::Status DrainingError() {
  return WithReason(absl::UnavailableError("the server is draining; another one takes over"),
                    "DRAINING");
}

absl::Status DeviceFaultError() {
  return WithReason(absl::UnavailableError("the device has failed; another server takes over"),
                    "DEVICE_FAULT");
}

absl::Status BusyError(std::string_view what, size_t limit) {
  return WithRetryDelay(
      WithReason(absl::ResourceExhaustedError(
                     absl::StrCat(Absl(what), ": all ", limit, " places are taken; try again")),
                 "QUEUE_FULL", {{"limit", std::to_string(limit)}}),
      kQueueFullRetryDelay);
}

absl::Status SubmitError(absl::Status status) {
  if (engine::IsDeviceFault(status)) return WithReason(std::move(status), "DEVICE_FAULT");
  if (absl::IsUnavailable(status)) return WithReason(std::move(status), "DRAINING");
  if (!absl::IsResourceExhausted(status)) return status;
  return WithRetryDelay(WithReason(std::move(status), "QUEUE_FULL"), kQueueFullRetryDelay);
}

std::string ReasonOf(const absl::Status& status) {
  return status.ok() ? "" : InfoOf(status).reason();
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message =
      Presentable({status.message().data(), status.message().size()}, kMaxErrorMessageBytes);
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(message);
  details.add_details()->PackFrom(InfoOf(status));
  google::rpc::RetryInfo retry;
  const auto payload = status.GetPayload(kRetryUrl);
  if (payload.has_value() && retry.ParseFromString(std::string(*payload))) {
    details.add_details()->PackFrom(retry);
    if (context != nullptr) {
      const int64_t delay_ms =
          retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1000000;
      context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(delay_ms));
    }
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      details.SerializeAsString());
}

}  // namespace vivarium::server
