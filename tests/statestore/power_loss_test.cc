// Power loss at any moment of a script of saves, small and large, deletions, expiry and sweeps,
// compactions and reopenings, on a disk that drops, tears and reorders what was not synced, and
// forgets names that their directory's sync had not seen (lossy_file_system.h): what was
// acknowledged is there, bit for bit; what was under way is there whole or not at all; nothing that
// was gone comes back. VIVARIUM_POWER_LOSSES sets how many losses at random moments; besides, each
// sync of a script is struck once before and once after.
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/statestore/lossy_file_system.h"
#include "tests/statestore/raw_rocksdb.h"
#include "tests/statestore/store_harness.h"

namespace vivarium::statestore {
namespace {

namespace fs = std::filesystem;
using Moment = LossyFileSystem::Moment;

constexpr absl::Duration kLifetime = absl::Seconds(5);

struct Operation {
  enum class Kind { kSave, kSaveExpiring, kDelete, kSweep, kCompact, kReopen };
  Kind kind;
  uint64_t number = 0;  // of the state
};

// What a loss left, and when it came: `num_acknowledged` operations were, the next one was not.
struct Loss {
  std::string copy;
  size_t num_acknowledged;
  absl::Time now;
};

// What is sure after the operations so far.
struct Books {
  std::map<uint64_t, absl::Time> alive;  // when each expires
  uint64_t head = 0;

  void Take(const Operation& operation, absl::Time created) {
    if (operation.kind == Operation::Kind::kSave) {
      alive[operation.number] = absl::InfiniteFuture();
      head = operation.number;
    } else if (operation.kind == Operation::Kind::kSaveExpiring) {
      alive[operation.number] = created + kLifetime;
    } else if (operation.kind == Operation::Kind::kDelete) {
      alive.erase(operation.number);
    }
  }
};

// In memory where that is possible: thousands of small directories.
std::string NewDirectory() {
  const fs::path base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : fs::temp_directory_path();
  std::string path = (base / "vivarium_power_XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) std::abort();
  return path;
}

RocksDbOptions LossyOptions() {
  RocksDbOptions options = SmallOptions();
  options.chunk_bytes = kMixedChunkBytes;
  options.write_buffer_bytes = 64 << 10;  // flushes on the way
  options.min_file_bytes = kMixedFileBytes;
  return options;
}

class PowerLoss {
 public:
  explicit PowerLoss(uint64_t seed) : random_(seed) {
    options_.env = env_.get();
    Open();
  }
  ~PowerLoss() {
    store_.reset();
    std::error_code error;
    fs::remove_all(directory_, error);
  }

  // A power loss, with the store going on, whenever `strikes` says so.
  void Arm(LossyFileSystem::Strikes strikes) {
    system_->Arm(
        std::move(strikes),
        [this] {
          losses_.push_back({absl::StrCat(directory_, "/copy", losses_.size()),
                             num_acknowledged_.load(), clock_.Now()});
          return losses_.back().copy;
        },
        random_());
  }

  void Do(size_t num_operations) {
    for (size_t i = 0; i < num_operations && !::testing::Test::HasFailure(); ++i) {
      operations_.push_back(NextOperation());
      created_.push_back(clock_.Now());
      Do(operations_.back());
      ++num_acknowledged_;
      books_.Take(operations_.back(), created_.back());
    }
  }
  size_t num_losses() const { return losses_.size(); }
  LossyFileSystem::Losses kinds() const { return system_->losses(); }

  // Looks at what each loss left.
  void CheckAll() {
    system_->Arm(nullptr, nullptr, 0);
    store_.reset();
    for (const Loss& loss : losses_) {
      SCOPED_TRACE(absl::StrCat(loss.copy, " after ", loss.num_acknowledged, " operations"));
      Check(loss);
      if (::testing::Test::HasFailure()) return;
      fs::remove_all(loss.copy);
    }
  }

 private:
  using Kind = Operation::Kind;

  void Open() {
    auto opened = OpenRocksDbStore(directory_ + "/store", options_, clock_.AsClock(), nullptr);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }

  Operation NextOperation() {
    const uint64_t choice = random_() % 100;
    if (choice < 1) return {Kind::kReopen};
    if (choice < 3) return {Kind::kCompact};
    if (choice < 8) return {Kind::kSweep};
    if (choice < 40) {
      // Any but the head.
      for (const auto& [number, expires] : books_.alive) {
        if (number != books_.head && expires > clock_.Now() && random_() % 3 == 0) {
          return {Kind::kDelete, number};
        }
      }
    }
    return {choice < 55 ? Kind::kSaveExpiring : Kind::kSave, next_number_++};
  }

  void Do(const Operation& operation) {
    absl::Status status;
    switch (operation.kind) {
      case Kind::kSave:
      case Kind::kSaveExpiring:
        status = Save(operation);
        break;
      case Kind::kDelete:
        status = store_->DeleteState(kTenant, SampleId(operation.number));
        break;
      case Kind::kSweep:
        clock_.Advance(kLifetime / 2);
        status = store_->Sweep(clock_.Now());
        break;
      case Kind::kCompact:
        status = store_->Compact();
        break;
      case Kind::kReopen:
        store_.reset();
        Open();
    }
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::Status Save(const Operation& operation) {
    SavedState state = MixedSampleState(operation.number);
    if (operation.kind == Kind::kSaveExpiring) state.manifest.expires = clock_.Now() + kLifetime;
    Commit commit = CommitOf(state);
    if (operation.kind == Kind::kSave) {
      commit.head_move = Commit::HeadMove{"s", state.manifest.id, "*"};
    }
    return store_->Apply(commit);
  }

  void Check(const Loss& loss) {
    Books books;
    for (size_t i = 0; i < loss.num_acknowledged; ++i) books.Take(operations_[i], created_[i]);
    Books after = books;
    const bool was_busy = loss.num_acknowledged < operations_.size();
    if (was_busy) after.Take(operations_[loss.num_acknowledged], created_[loss.num_acknowledged]);
    RocksDbOptions options = LossyOptions();
    auto store = OpenRocksDbStore(
        loss.copy, options, [&loss] { return loss.now; }, nullptr);
    ASSERT_TRUE(store.ok()) << store.status();
    std::set<uint64_t> there;
    for (uint64_t number = 1; number < next_number_; ++number) {
      const absl::StatusOr<SavedState> found = (*store)->Load(kTenant, SampleId(number));
      ASSERT_TRUE(found.ok() || absl::IsNotFound(found.status())) << found.status();
      const bool before = IsAlive(books, number, loss.now);
      const bool then = IsAlive(after, number, loss.now);
      ASSERT_TRUE(found.ok() || !before || !then) << "lost: " << number;
      ASSERT_TRUE(!found.ok() || before || then) << "came back: " << number;
      if (!found.ok()) continue;
      there.insert(number);
      SavedState expected = MixedSampleState(number);
      expected.manifest.expires = (before ? books : after).alive.at(number);
      ExpectSameState(*found, expected);
    }
    CheckHead(**store, there.contains(after.head) ? after.head : books.head);
    // Expired ones that a sweep had dropped may have come back as such: the next one drops them.
    ASSERT_TRUE((*store)->Sweep(loss.now).ok());
    EXPECT_EQ((*store)->Stats()->num_states, there.size());
    store->reset();
    if (random_() % 4 == 0) CheckNoOrphans(loss.copy, there);
  }

  static bool IsAlive(const Books& books, uint64_t number, absl::Time now) {
    const auto found = books.alive.find(number);
    return found != books.alive.end() && found->second > now;
  }

  static void CheckHead(StateStore& store, uint64_t head) {
    const absl::StatusOr<Session> session = store.GetSession(kTenant, "s");
    ASSERT_EQ(session.ok(), head != 0) << session.status();
    if (head != 0) {
      EXPECT_EQ(session->head, SampleId(head));
    }
  }

  static void CheckNoOrphans(const std::string& directory, const std::set<uint64_t>& there) {
    std::set<std::string> alive;
    for (const uint64_t number : there) alive.insert(SampleId(number));
    RawRocksDb raw(directory);
    for (const std::string& key : raw.Keys("", true)) {
      ASSERT_TRUE(alive.contains(key.substr(sizeof(kTenant), 29))) << "an orphan of " << key;
    }
    EXPECT_TRUE(raw.Keys("p/", false).empty()) << "an intent is left";
    for (const auto& entry : fs::directory_iterator(directory)) {
      EXPECT_NE(entry.path().extension(), ".chunks") << entry.path();
    }
  }

  std::mt19937_64 random_;
  const std::string directory_ = NewDirectory();
  FakeClock clock_;
  std::shared_ptr<LossyFileSystem> system_ =
      std::make_shared<LossyFileSystem>(rocksdb::FileSystem::Default());
  std::unique_ptr<rocksdb::Env> env_ = rocksdb::NewCompositeEnv(system_);
  RocksDbOptions options_ = LossyOptions();
  std::unique_ptr<StateStore> store_;
  uint64_t next_number_ = 1;
  std::vector<Operation> operations_;
  std::vector<absl::Time> created_;  // by operation
  std::atomic<size_t> num_acknowledged_{0};
  Books books_;
  std::vector<Loss> losses_;
};

TEST(PowerLoss, NothingAcknowledgedIsLost) {
  const char* wanted = std::getenv("VIVARIUM_POWER_LOSSES");
  const int num_losses = wanted != nullptr ? std::atoi(wanted) : 300;
  constexpr int kLossesPerStore = 10;
  std::mt19937_64 random(3);
  LossyFileSystem::Losses kinds;
  for (int begin = 0; begin < num_losses; begin += kLossesPerStore) {
    PowerLoss store(random());
    const auto wanted_here = static_cast<size_t>(std::min(kLossesPerStore, num_losses - begin));
    auto chance = std::make_shared<std::mt19937_64>(random());
    store.Arm([&store, chance, wanted_here](const Moment& moment) {
      // More often where much is about to be synced: a file of chunks, a flush.
      const bool is_large = moment.kind == Moment::Kind::kBeforeSync &&
                            (moment.file_kind == "chunks" || moment.file_kind == "blob");
      return store.num_losses() < wanted_here && (*chance)() % (is_large ? 6 : 60) == 0;
    });
    while (store.num_losses() < wanted_here && !HasFailure()) store.Do(1);
    store.CheckAll();
    ASSERT_FALSE(HasFailure()) << "losses from " << begin;
    const LossyFileSystem::Losses here = store.kinds();
    kinds.num_dropped += here.num_dropped;
    kinds.num_torn += here.num_torn;
    kinds.num_reordered += here.num_reordered;
    kinds.num_lost_names += here.num_lost_names;
  }
  std::cout << num_losses << " losses: " << kinds.num_dropped << " files dropped, "
            << kinds.num_torn << " torn, " << kinds.num_reordered << " reordered; names lost in "
            << kinds.num_lost_names << "\n";
  // The losses did lose something, of each kind.
  EXPECT_GT(kinds.num_dropped, num_losses / 20);
  EXPECT_GT(kinds.num_torn, num_losses / 20);
  EXPECT_GT(kinds.num_reordered, num_losses / 100);
  EXPECT_GT(kinds.num_lost_names, num_losses / 20);
}

TEST(PowerLoss, BeforeAndAfterEverySync) {
  PowerLoss store(5);
  // Of each kind of file: syncs, and losses before and after them.
  std::map<std::string, int> before, after;
  store.Arm([&](const Moment& moment) {
    if (moment.kind == Moment::Kind::kBeforeSync) ++before[moment.file_kind];
    if (moment.kind == Moment::Kind::kAfterSync) ++after[moment.file_kind];
    return moment.kind == Moment::Kind::kBeforeSync || moment.kind == Moment::Kind::kAfterSync;
  });
  store.Do(70);
  const size_t num_losses = store.num_losses();
  store.CheckAll();
  size_t num_syncs = 0;
  for (const auto& [kind, count] : before) {
    std::cout << count << " syncs of " << kind << "\n";
    EXPECT_EQ(after[kind], count) << kind;
    num_syncs += static_cast<size_t>(count);
  }
  EXPECT_EQ(num_losses, 2 * num_syncs);
  // Every kind of file that the store syncs was among them.
  for (const char* kind : {"log", "sst", "blob", "MANIFEST", "dbtmp", "chunks", "directory"}) {
    EXPECT_GT(before[kind], 0) << kind;
  }
}

}  // namespace
}  // namespace vivarium::statestore
