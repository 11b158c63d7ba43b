#include "statestore/quota_ledger.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace vivarium::statestore {
namespace {

constexpr absl::string_view kExceededUrl = "vivarium/quota-exceeded";

uint64_t SaturatingSum(uint64_t a, uint64_t b) {
  return a > std::numeric_limits<uint64_t>::max() - b ? std::numeric_limits<uint64_t>::max()
                                                      : a + b;
}

Quota Sum(const Quota& a, const Quota& b) {
  return {SaturatingSum(a.num_states, b.num_states), SaturatingSum(a.num_bytes, b.num_bytes)};
}

Quota Minus(const Quota& a, const Quota& b) {
  assert(a.num_states >= b.num_states && a.num_bytes >= b.num_bytes);
  return {a.num_states - b.num_states, a.num_bytes - b.num_bytes};
}

// What is there can't be negative, whatever damaged counters say.
uint64_t Changed(uint64_t value, int64_t difference) {
  if (difference >= 0) return SaturatingSum(value, static_cast<uint64_t>(difference));
  return value - std::min(value, uint64_t{0} - static_cast<uint64_t>(difference));
}

bool IsBeyond(const QuotaExceeded& e) {
  if (e.limit == 0 || e.asked == 0) return false;
  return SaturatingSum(SaturatingSum(e.used, e.reserved), e.asked) > e.limit;
}

}  // namespace

absl::Status QuotaExceededError(const QuotaExceeded& e) {
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("quota of tenant ", e.tenant, ": ", e.used, " ", e.what, " stored, ", e.reserved,
                   " reserved, ", e.asked, " more asked for, at most ", e.limit,
                   "; deleting states makes room"));
  // A tenant has no space in it.
  status.SetPayload(kExceededUrl, absl::Cord(absl::StrCat(e.tenant, " ", e.what, " ", e.used, " ",
                                                          e.reserved, " ", e.asked, " ", e.limit)));
  return status;
}

std::optional<QuotaExceeded> QuotaExceededOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kExceededUrl);
  if (!payload.has_value()) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(std::string(*payload), ' ');
  QuotaExceeded e;
  if (parts.size() != 6 || !absl::SimpleAtoi(parts[2], &e.used) ||
      !absl::SimpleAtoi(parts[3], &e.reserved) || !absl::SimpleAtoi(parts[4], &e.asked) ||
      !absl::SimpleAtoi(parts[5], &e.limit)) {
    return std::nullopt;
  }
  e.tenant = parts[0];
  e.what = parts[1];
  return e;
}

StateReservation::StateReservation(StateReservation&& other) noexcept
    : ledger_(std::exchange(other.ledger_, nullptr)),
      tenant_(std::exchange(other.tenant_, std::string())),
      kept_(std::exchange(other.kept_, Quota())) {}

StateReservation& StateReservation::operator=(StateReservation&& other) noexcept {
  if (this == &other) return *this;
  Release();
  ledger_ = std::exchange(other.ledger_, nullptr);
  tenant_ = std::exchange(other.tenant_, std::string());
  kept_ = std::exchange(other.kept_, Quota());
  return *this;
}

void StateReservation::Release() {
  if (ledger_ != nullptr) ledger_->GiveBack(tenant_, kept_);
  ledger_ = nullptr;
  tenant_.clear();
  kept_ = Quota();
}

StateReservation StateReservation::Split(const Quota& wanted) {
  const Quota part = {std::min(wanted.num_states, kept_.num_states),
                      std::min(wanted.num_bytes, kept_.num_bytes)};
  kept_ = Minus(kept_, part);
  return StateReservation(ledger_, tenant_, part);
}

void StateReservation::Merge(StateReservation other) {
  if (other.ledger_ == nullptr) return;
  if (ledger_ == nullptr) {
    *this = std::move(other);
    return;
  }
  assert(ledger_ == other.ledger_ && tenant_ == other.tenant_);
  kept_ = Sum(kept_, std::exchange(other.kept_, Quota()));
}

const Quota& QuotaLedger::LimitOf(const std::string& tenant) const {
  const auto found = options_.by_tenant.find(tenant);
  return found == options_.by_tenant.end() ? options_.each_tenant : found->second;
}

absl::StatusOr<StateReservation> QuotaLedger::Reserve(const std::string& tenant,
                                                      const Quota& wanted) {
  const Quota& limit = LimitOf(tenant);
  absl::MutexLock lock(&mutex_);
  Account& account = accounts_[tenant];
  for (const QuotaExceeded& e :
       {QuotaExceeded{tenant, "states", account.used.num_states, account.reserved.num_states,
                      wanted.num_states, limit.num_states},
        QuotaExceeded{tenant, "bytes", account.used.num_bytes, account.reserved.num_bytes,
                      wanted.num_bytes, limit.num_bytes}}) {
    if (!IsBeyond(e)) continue;
    ++account.num_refusals;
    return QuotaExceededError(e);
  }
  account.reserved = Sum(account.reserved, wanted);
  return StateReservation(this, tenant, wanted);
}

absl::StatusOr<QuotaLedger::Taken> QuotaLedger::Take(const std::string& tenant, const Quota& wanted,
                                                     StateReservation* source) {
  Taken taken;
  if (source != nullptr && source->ledger_ != nullptr) {
    assert(source->ledger_ == this && source->tenant_ == tenant);
    taken.from_source = source->Split(wanted);
  }
  absl::StatusOr<StateReservation> rest = Reserve(tenant, Minus(wanted, taken.from_source.kept()));
  if (rest.ok()) {
    taken.from_free = *std::move(rest);
    return taken;
  }
  Return(std::move(taken), source);
  return rest.status();
}

void QuotaLedger::Settle(Taken taken, const Quota& used) {
  absl::MutexLock lock(&mutex_);
  for (StateReservation* part : {&taken.from_source, &taken.from_free}) {
    if (part->ledger_ == nullptr) continue;
    Account& account = accounts_[part->tenant_];
    account.reserved = Minus(account.reserved, part->kept_);
    if (part == &taken.from_free) account.used = Sum(account.used, used);
    part->ledger_ = nullptr;
  }
}

void QuotaLedger::Return(Taken taken, StateReservation* source) {
  if (source != nullptr) source->Merge(std::move(taken.from_source));
}

void QuotaLedger::Add(const std::string& tenant, int64_t num_states, int64_t num_bytes) {
  if (num_states == 0 && num_bytes == 0) return;
  absl::MutexLock lock(&mutex_);
  Quota& used = accounts_[tenant].used;
  used.num_states = Changed(used.num_states, num_states);
  used.num_bytes = Changed(used.num_bytes, num_bytes);
}

void QuotaLedger::GiveBack(const std::string& tenant, const Quota& kept) {
  absl::MutexLock lock(&mutex_);
  Account& account = accounts_[tenant];
  account.reserved = Minus(account.reserved, kept);
}

QuotaUsage QuotaLedger::Usage(const std::string& tenant) const {
  QuotaUsage usage;
  usage.limit = LimitOf(tenant);
  absl::MutexLock lock(&mutex_);
  const auto found = accounts_.find(tenant);
  if (found == accounts_.end()) return usage;
  usage.used = found->second.used;
  usage.reserved = found->second.reserved;
  usage.num_refusals = found->second.num_refusals;
  return usage;
}

}  // namespace vivarium::statestore
