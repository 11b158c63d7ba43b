// Client: one connection to a server, and the one place where calls get their deadline, are
// cancelled by Ctrl-C, and where their errors become sentences and exit codes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "vivarium/v1/generation.grpc.pb.h"
#include "vivarium/v1/server.grpc.pb.h"
#include "vivarium/v1/sessions.grpc.pb.h"
#include "vivarium/v1/states.grpc.pb.h"

namespace vivarium::cli {

// Not thread-safe.
class Client {
 public:
  // Returns when the connection stands. UNAVAILABLE, saying what to try, when nobody listens there
  // (at once) or nobody answers (after 5 s, or the flags' timeout). Blocks interrupts for the rest
  // of the process.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ConnectionFlags& flags);

  v1::Generation::Stub& generation() { return *generation_; }
  v1::States::Stub& states() { return *states_; }
  v1::Sessions::Stub& sessions() { return *sessions_; }
  v1::Models::Stub& models() { return *models_; }
  v1::Admin::Stub& admin() { return *admin_; }

  // For one call: its context, with the deadline that --timeout asks for; Ctrl-C cancels it.
  class Call {
   public:
    explicit Call(double timeout_seconds);

    grpc::ClientContext* context() { return &context_; }
    bool was_interrupted() const { return watcher_.fired(); }

   private:
    grpc::ClientContext context_;
    InterruptWatcher watcher_;
  };
  std::unique_ptr<Call> NewCall() const { return std::make_unique<Call>(timeout_seconds_); }

  // A call with one answer: `method` is a Stub's, e.g. &v1::States::Stub::GetState.
  template <typename Stub, typename Request, typename Response>
  grpc::Status Do(Stub& stub,
                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response) const {
    const auto call = NewCall();
    return (stub.*method)(call->context(), request, response);
  }

  // Prints the error and returns the exit code that it deserves.
  int Fail(const grpc::Status& status) const;

  const std::string& address() const { return address_; }

 private:
  Client(std::string address, double timeout_seconds,
         const std::shared_ptr<grpc::Channel>& channel);

  const std::string address_;
  const double timeout_seconds_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::States::Stub> states_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<v1::Models::Stub> models_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

// "no state st_... (NOT_FOUND, STATE_NOT_FOUND)": message, code, and from the error's details the
// ErrorInfo reason and when to try again.
std::string ErrorSentence(const grpc::Status& status);

}  // namespace vivarium::cli
