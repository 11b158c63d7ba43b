#include "server/session_manager.h"

#include "absl/strings/str_cat.h"
#include "server/errors.h"

namespace vivarium::server {
namespace {

// No tenant has a slash in its name.
std::string Key(const std::string& tenant, const std::string& name) {
  return absl::StrCat(tenant, "/", name);
}

}  // namespace

HoldSet::Hold& HoldSet::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    Release();
    set_ = std::exchange(other.set_, nullptr);
    name_ = std::move(other.name_);
  }
  return *this;
}

void HoldSet::Hold::Release() {
  if (set_ == nullptr) return;
  absl::MutexLock lock(&set_->mutex_);
  set_->held_.erase(name_);
  set_ = nullptr;
}

std::optional<HoldSet::Hold> HoldSet::TryHold(std::string name) {
  absl::MutexLock lock(&mutex_);
  if (!held_.insert(name).second) return std::nullopt;
  return Hold(this, std::move(name));
}

size_t HoldSet::size() const {
  absl::MutexLock lock(&mutex_);
  return held_.size();
}

absl::StatusOr<LeasedSession> SessionManager::Lease(const std::string& tenant,
                                                    const std::string& name,
                                                    const std::string& expected_etag) {
  std::optional<HoldSet::Hold> lease = leases_.TryHold(Key(tenant, name));
  if (!lease) {
    return WithReason(absl::AbortedError(absl::StrCat(
                          "session ", name, " is being written by another call; try again")),
                      "SESSION_BUSY", {{"session", name}});
  }
  absl::StatusOr<LeasedSession> session = Read(tenant, name, expected_etag);
  if (session.ok()) session->lease = *std::move(lease);
  return session;
}

absl::StatusOr<LeasedSession> SessionManager::Read(const std::string& tenant,
                                                   const std::string& name,
                                                   const std::string& expected_etag) {
  LeasedSession session;
  session.name = name;
  absl::StatusOr<statestore::Session> found = store_->GetSession(tenant, name);
  if (found.ok()) {
    session.current = *std::move(found);
  } else if (!absl::IsNotFound(found.status())) {
    return found.status();
  }
  if (!expected_etag.empty() && expected_etag != session.etag()) {
    return WithReason(
        absl::AbortedError(absl::StrCat("session ", name, " has etag ",
                                        session.current ? session.etag() : "(it does not exist)",
                                        "; expected ", expected_etag)),
        "STALE_ETAG", {{"session", name}, {"etag", session.etag()}});
  }
  return session;
}

absl::StatusOr<HoldSet::Hold> SessionManager::HoldRequest(const std::string& tenant,
                                                          const std::string& request_id) {
  std::optional<HoldSet::Hold> hold = requests_.TryHold(Key(tenant, request_id));
  if (hold) return *std::move(hold);
  return WithReason(
      absl::AbortedError(absl::StrCat("request ", request_id, " is in flight; try again")),
      "REQUEST_IN_FLIGHT", {{"request_id", request_id}});
}

}  // namespace vivarium::server
