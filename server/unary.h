// Unary calls whose work blocks: run on the executor, ended with an ErrorInfo, counted and logged.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <string_view>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "server/call_log.h"
#include "server/errors.h"
#include "server/parts.h"

namespace vivarium::server {

// `work` runs once, on an executor thread; what it captures of request and response stays valid.
inline grpc::ServerUnaryReactor* RunUnary(Parts* parts, std::string_view method,
                                          grpc::CallbackServerContext* context,
                                          absl::AnyInvocable<absl::Status()> work) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::Time arrived = absl::Now();
  const auto end = [=](const absl::Status& status) {
    ReportCall(*parts, {method, status, absl::Now() - arrived, ""});
    reactor->Finish(ToGrpcStatus(status, context));
  };
  const bool is_taken =
      parts->executor->TryRun([work = std::move(work), end]() mutable { end(work()); });
  if (!is_taken) end(BusyError("calls that wait to begin", parts->executor->max_new()));
  return reactor;
}

}  // namespace vivarium::server
