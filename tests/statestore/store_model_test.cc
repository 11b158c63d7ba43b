// Random operations on the durable store and on the oracle: they must agree in every answer, and,
// now and then and after reopening, in everything they hold. VIVARIUM_MODEL_OPS sets how many.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

constexpr uint64_t kNumIds = 60;
constexpr int kNumSessions = 5;
constexpr int kNumRequests = 12;

class ModelTest {
 public:
  ModelTest(uint64_t seed, StoreKind kind) : random_(seed), durable_(kind, Options(seed)) {}

  void Step() {
    const uint64_t choice = Below(100);
    if (choice < 39) return Apply();
    if (choice < 40) return Reserve();
    if (choice < 52) return Delete();
    if (choice < 64) return Update();
    if (choice < 71) return Load();
    if (choice < 76) return FindPrefix();
    if (choice < 80) return Ancestry();
    if (choice < 88) return List();
    if (choice < 91) return DeleteSession();
    if (choice < 94) return GetRequest();
    if (choice < 97) return Advance(absl::Seconds(Below(30)));
    Sweep();
  }

  void CompareEverything() {
    StateFilter all = WithDropped();
    std::string token;
    uint64_t live_bytes = 0;
    do {
      const auto found = durable_.store().ListStates(kTenant, all, 17, token);
      const auto expected = oracle_.store().ListStates(kTenant, all, 17, token);
      ASSERT_TRUE(found.ok() && expected.ok()) << found.status();
      ASSERT_EQ(found->items.size(), expected->items.size());
      for (size_t i = 0; i < found->items.size(); ++i) {
        ExpectSameManifest(found->items[i], expected->items[i]);
        CompareLoad(found->items[i].id);
      }
      ASSERT_EQ(found->next_page_token, expected->next_page_token);
      token = found->next_page_token;
    } while (!token.empty());
    CompareSessions();
    // After a sweep nothing is half dropped: the listed bytes are the counted ones.
    Sweep();
    const auto page = durable_.store().ListStates(kTenant, {}, 1000, "");
    ASSERT_TRUE(page.ok());
    for (const StateManifest& manifest : page->items) live_bytes += manifest.stored_bytes;
    const auto found = durable_.store().Stats();
    const auto expected = oracle_.store().Stats();
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->num_states, expected->num_states);
    EXPECT_EQ(found->num_manifests, expected->num_manifests);
    EXPECT_EQ(found->num_sessions, expected->num_sessions);
    EXPECT_EQ(found->live_bytes, live_bytes);
    EXPECT_EQ(expected->live_bytes, live_bytes);
    const auto report = durable_.store().Scrub({});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->is_sound()) << report->inconsistent[0];
    const QuotaUsage quota = durable_.store().GetQuota(kTenant);
    EXPECT_EQ(quota.used, oracle_.store().GetQuota(kTenant).used);
    EXPECT_EQ(quota.used, (Quota{found->num_states, found->live_bytes}));
    EXPECT_EQ(quota.reserved, oracle_.store().GetQuota(kTenant).reserved);
  }

  void Reopen() {
    durable_kept_ = StateReservation();
    oracle_kept_ = StateReservation();
    durable_.Reopen();
  }
  int num_found() const { return num_found_; }
  int num_inexact() const { return num_inexact_; }
  int num_host_loads() { return durable_.events().num_host_loads; }

 private:
  // Every other seed with hashes of two bits: nearly all of them are equal.
  static RocksDbOptions Options(uint64_t seed) {
    RocksDbOptions options = SmallOptions();
    options.quotas.each_tenant = {25, 28'000};  // met now and then
    options.max_prefix_candidates = 1 << 20;
    if (seed % 2 == 0) options.prefix_hash_mask = 3;
    return options;
  }
  uint64_t Below(uint64_t bound) { return random_() % bound; }
  StateId RandomId() { return SampleId(Below(kNumIds)); }
  std::string RandomSession() { return absl::StrCat("s", Below(kNumSessions)); }
  std::string RandomRequest() { return absl::StrCat("r", Below(kNumRequests)); }
  absl::Time RandomTime() { return durable_.clock().Now() + absl::Seconds(Below(60)); }

  // Each store has etags of its own.
  static std::string Etag(StateStore& store, const std::string& session, uint64_t choice) {
    if (choice < 4) return "*";
    if (choice < 5) return "";
    if (choice < 6) return "stale";
    const absl::StatusOr<Session> found = store.GetSession(kTenant, session);
    return found.ok() ? found->etag : "none";
  }

  void ExpectSameCode(const absl::Status& found, const absl::Status& expected) {
    ASSERT_EQ(found.code(), expected.code()) << found << " / " << expected;
  }

  void Apply() {
    std::vector<SavedState> states;
    for (uint64_t n = Below(3); n > 0; --n) {
      states.push_back(SampleState(RandomId(), Below(1000)));
      StateManifest& manifest = states.back().manifest;
      if (Below(3) > 0) manifest.parent_id = RandomId();
      if (Below(2) > 0) manifest.session = RandomSession();
      if (Below(2) > 0) manifest.expires = RandomTime();
      manifest.pinned = Below(10) == 0;
      manifest.codec = static_cast<StateCodec>(Below(3));
      if (Below(2) > 0) BecomeThread(&manifest);
      manifest.is_snapshot = Below(2) > 0;
      if (Below(2) > 0) manifest.snapshots = {{RandomId(), Below(manifest.position + 1)}};
      if (Below(2) > 0) manifest.prefix_hash = Below(1000);
    }
    Commit commit;
    commit.tenant = kTenant;
    for (const SavedState& state : states) {
      commit.states.push_back({state.manifest, &state.slot, /*is_reusable=*/Below(16) > 0});
    }
    if (!states.empty() && Below(2) > 0) {
      for (uint64_t n = Below(4); n > 0; --n) {
        StateId id = RandomId();
        if (std::none_of(states.begin(), states.end(),
                         [&](const SavedState& state) { return state.manifest.id == id; })) {
          commit.thinned.push_back(std::move(id));
        }
      }
    }
    const bool moves = Below(2) > 0;
    if (Below(4) == 0) {
      commit.request = RequestRecord{RandomRequest(), absl::StrCat(Below(2)),
                                     absl::StrCat(Below(1000)), RandomTime()};
    }
    const std::string session = RandomSession();
    const StateId head = states.empty() || Below(4) == 0 ? RandomId() : states[0].manifest.id;
    const uint64_t etag_choice = Below(10);
    const bool takes_reserved = Below(3) == 0;
    const auto apply = [&](StateStore& store) {
      StateReservation& kept = &store == &durable_.store() ? durable_kept_ : oracle_kept_;
      commit.reservation = takes_reserved ? &kept : nullptr;
      if (moves)
        commit.head_move = Commit::HeadMove{session, head, Etag(store, session, etag_choice)};
      return store.Apply(commit);
    };
    const absl::Status expected = apply(oracle_.store());
    ExpectSameCode(apply(durable_.store()), expected);
  }

  // Few tokens, of two kinds: many threads begin alike.
  void BecomeThread(StateManifest* manifest) {
    manifest->parent_id.clear();
    size_t num_tokens = 1 + Below(6);
    manifest->position = num_tokens - 1;
    const auto parent = oracle_.store().GetManifest(kTenant, RandomId());
    if (parent.ok() && Below(3) > 0) {
      num_tokens = Below(4);
      manifest->parent_id = parent->id;
      manifest->pending_token = parent->pending_token;
      manifest->position = parent->position + num_tokens;
      manifest->inherited_loss = parent->inherited_loss;
    }
    manifest->transcript.clear();
    for (size_t i = 0; i < num_tokens; ++i) {
      manifest->transcript.push_back({static_cast<int32_t>(Below(2)), Below(2) > 0});
      manifest->pending_token = manifest->transcript.back().id;
    }
    if (Below(8) == 0) manifest->identity.numerics_id = "other";
    if (Below(16) == 0) manifest->identity.tokenizer_hash = "other";
    if (Below(3) > 0) manifest->codec = StateCodec::kRaw;
  }

  void FindPrefix() {
    std::vector<int32_t> prompt(Below(16));
    for (int32_t& id : prompt) id = static_cast<int32_t>(Below(2));
    PrefixQuery query{SampleManifest(SampleId(0), 0).identity, prompt, {}};
    for (uint64_t n = Below(3); n > 0; --n) query.skip.push_back(RandomId());
    const auto found = durable_.store().FindPrefix(kTenant, query);
    const auto expected = oracle_.store().FindPrefix(kTenant, query);
    ASSERT_TRUE(found.ok() && expected.ok()) << found.status();
    EXPECT_EQ(found->id, expected->id);
    EXPECT_EQ(found->position, expected->position);
    EXPECT_EQ(found->inexact_id, expected->inexact_id);
    EXPECT_EQ(found->inexact_position, expected->inexact_position);
    EXPECT_EQ(found->inexact_reason, expected->inexact_reason);
    EXPECT_TRUE(found->damaged.empty());
    num_found_ += found->id.empty() ? 0 : 1;
    num_inexact_ += found->inexact_id.empty() ? 0 : 1;
  }

  void Reserve() {
    const uint64_t num_states = Below(6);
    const auto codec = static_cast<StateCodec>(Below(3));
    auto found = durable_.store().Reserve(kTenant, num_states, SampleLayout(), codec);
    auto expected = oracle_.store().Reserve(kTenant, num_states, SampleLayout(), codec);
    ExpectSameCode(found.status(), expected.status());
    durable_kept_ = StateReservation();
    oracle_kept_ = StateReservation();
    if (!found.ok()) return;
    durable_kept_ = *std::move(found);
    oracle_kept_ = *std::move(expected);
  }

  void Delete() {
    const StateId id = RandomId();
    ExpectSameCode(durable_.store().DeleteState(kTenant, id),
                   oracle_.store().DeleteState(kTenant, id));
  }

  void Update() {
    const StateId id = RandomId();
    StateUpdate update;
    if (Below(2) > 0) update.labels = Labels{{"kind", absl::StrCat("k", Below(3))}};
    if (Below(2) > 0) update.expires = Below(3) == 0 ? absl::InfiniteFuture() : RandomTime();
    if (Below(2) > 0) update.pinned = Below(4) == 0;
    const auto found = durable_.store().UpdateState(kTenant, id, update);
    const auto expected = oracle_.store().UpdateState(kTenant, id, update);
    ExpectSameCode(found.status(), expected.status());
    if (found.ok()) ExpectSameManifest(*found, *expected);
  }

  void Load() { CompareLoad(RandomId()); }

  void CompareLoad(const StateId& id) {
    const auto found = durable_.store().Load(kTenant, id);
    const auto expected = oracle_.store().Load(kTenant, id);
    ExpectSameCode(found.status(), expected.status());
    if (found.ok()) ExpectSameState(*found, *expected);
  }

  void Ancestry() {
    const StateId id = RandomId();
    const size_t limit = Below(20);  // parents are random here: there may be circles
    const auto found = durable_.store().Ancestry(kTenant, id, limit);
    const auto expected = oracle_.store().Ancestry(kTenant, id, limit);
    if (limit == 0) return;
    ExpectSameCode(found.status(), expected.status());
    if (!found.ok()) return;
    ASSERT_EQ(found->size(), expected->size());
    for (size_t i = 0; i < found->size(); ++i) ExpectSameManifest((*found)[i], (*expected)[i]);
  }

  void List() {
    StateFilter filter;
    if (Below(2) > 0) filter.labels = {{"kind", absl::StrCat("k", Below(3))}};
    if (Below(3) == 0) filter.session = RandomSession();
    if (Below(3) == 0) filter.parent_id = RandomId();
    filter.include_dropped = Below(2) > 0;
    const int page_size = static_cast<int>(1 + Below(20));
    const auto found = durable_.store().ListStates(kTenant, filter, page_size, "");
    const auto expected = oracle_.store().ListStates(kTenant, filter, page_size, "");
    ASSERT_TRUE(found.ok() && expected.ok()) << found.status();
    ASSERT_EQ(found->items.size(), expected->items.size());
    for (size_t i = 0; i < found->items.size(); ++i) {
      ExpectSameManifest(found->items[i], expected->items[i]);
    }
    if (found->next_page_token.empty()) {
      EXPECT_TRUE(expected->next_page_token.empty());
      return;
    }
    // The durable store may hand out a token without knowing whether a match follows.
    const auto next =
        durable_.store().ListStates(kTenant, filter, page_size, found->next_page_token);
    ASSERT_TRUE(next.ok());
    ASSERT_EQ(next->items.empty(), expected->next_page_token.empty());
  }

  void CompareSessions() {
    const auto found = durable_.store().ListSessions(kTenant, 100, "");
    const auto expected = oracle_.store().ListSessions(kTenant, 100, "");
    ASSERT_TRUE(found.ok());
    ASSERT_EQ(found->items.size(), expected->items.size());
    for (size_t i = 0; i < found->items.size(); ++i) {
      EXPECT_EQ(found->items[i].name, expected->items[i].name);
      EXPECT_EQ(found->items[i].head, expected->items[i].head);
      EXPECT_EQ(found->items[i].recent_heads, expected->items[i].recent_heads);
      EXPECT_EQ(found->items[i].created, expected->items[i].created);
      EXPECT_EQ(found->items[i].updated, expected->items[i].updated);
    }
  }

  void DeleteSession() {
    const std::string session = RandomSession();
    const uint64_t choice = Below(10);
    const auto erase = [&](StateStore& store) {
      return store.DeleteSession(kTenant, session, Etag(store, session, choice));
    };
    const absl::Status expected = erase(oracle_.store());
    ExpectSameCode(erase(durable_.store()), expected);
  }

  void GetRequest() {
    const std::string id = RandomRequest();
    const auto found = durable_.store().GetRequest(kTenant, id);
    const auto expected = oracle_.store().GetRequest(kTenant, id);
    ExpectSameCode(found.status(), expected.status());
    if (!found.ok()) return;
    EXPECT_EQ(found->request_hash, expected->request_hash);
    EXPECT_EQ(found->result, expected->result);
    EXPECT_EQ(found->expires, expected->expires);
  }

  void Advance(absl::Duration duration) {
    durable_.clock().Advance(duration);
    oracle_.clock().Advance(duration);
  }

  void Sweep() {
    ASSERT_TRUE(durable_.store().Sweep(durable_.clock().Now()).ok());
    ASSERT_TRUE(oracle_.store().Sweep(oracle_.clock().Now()).ok());
    EXPECT_EQ(durable_.events().num_expired, oracle_.events().num_expired);
  }

  std::mt19937_64 random_;
  StoreHarness durable_;
  StoreHarness oracle_{StoreKind::kMemory, Options(0)};
  StateReservation durable_kept_, oracle_kept_;
  int num_found_ = 0, num_inexact_ = 0;  // by FindPrefix
};

TEST(StoreModel, TheDurableStoreDoesWhatTheOracleDoes) {
  const char* wanted = std::getenv("VIVARIUM_MODEL_OPS");
  const int num_ops = wanted != nullptr ? std::atoi(wanted) : 20'000;
  constexpr int kOpsPerSeed = 5'000;
  for (int begin = 0; begin < num_ops; begin += kOpsPerSeed) {
    const int seed = 1 + begin / kOpsPerSeed;
    const StoreKind kind = seed / 2 % 2 == 1 ? StoreKind::kCached : StoreKind::kRocksDb;
    ModelTest model(static_cast<uint64_t>(seed), kind);
    for (int op = 0; op < kOpsPerSeed && begin + op < num_ops; ++op) {
      model.Step();
      if (op % 500 == 250) model.CompareEverything();
      if (op % 500 == 499) {
        model.Reopen();
        model.CompareEverything();
      }
      if (::testing::Test::HasFailure()) FAIL() << "seed " << seed << ", operation " << op;
    }
    if (num_ops - begin < kOpsPerSeed) break;
    EXPECT_GT(model.num_found(), 10) << "seed " << seed;
    EXPECT_GT(model.num_inexact(), 0) << "seed " << seed;
    EXPECT_EQ(model.num_host_loads() > 0, kind == StoreKind::kCached);
  }
}

}  // namespace
}  // namespace vivarium::statestore
