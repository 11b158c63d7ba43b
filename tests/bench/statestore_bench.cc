// statestore_bench: the durable store, verified, then timed beside what disk and memory can do in
// the same run: puts (acknowledged, so synced), cold and warm gets, by state size and codec;
// several writers at once.
//
//   statestore_bench [--directory DIR] [--sizes MB,...] [--codecs raw,zstd,bf16] [--writers N,...]
//                    [--repeats N] [--min-file-bytes BYTES] [--json] [--json-to FILE] [--quick]
//
// Every timed put is paired with a raw one: the same bytes, written in sequence to a new file in
// the same directory, and synced. Cold gets: the store is closed, its files' pages are dropped
// (posix_fadvise, DONTNEED), it is opened again and every state is read once; beside it a raw file
// read likewise. Warm gets: once more; beside them a copy of the same bytes into new memory. Every
// state that was read is compared with what was written, outside of the time. `of` is the share of
// the raw figure; sums of times, not medians, so that stalls count. MB are 10^6 bytes of the slot,
// whatever the codec made of them.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "statestore/rocksdb_store.h"
#include "statestore/slot_packing.h"
#include "statestore/state_id.h"
#include "tests/bench/bench_states.h"
#include "tests/bench/counting_file_system.h"
#include "tests/bench/machine_peaks.h"
#include "tests/bench/raw_disk.h"
#include "tests/support/temp_dir.h"

namespace vivarium::bench {
namespace {

namespace fs = std::filesystem;
using statestore::StateCodec;
using statestore::StateId;
using statestore::StateStore;

constexpr double kMB = 1e6;
constexpr size_t kNumSlots = 3;  // different ones, by turns

struct Options {
  std::string directory;  // "" = a temporary one
  std::vector<double> sizes_mb = {2.5, 24, 170};
  std::vector<std::string> codecs = {"raw", "zstd", "bf16"};
  std::vector<int> writers = {1, 4, 16};
  double writers_mb = 2.5;
  int repeats = 0;  // 0: by size
  uint64_t min_file_bytes = statestore::RocksDbOptions().min_file_bytes;
  bool json = false;
  std::string json_to;
  bool quick = false;
};

// Seconds of each operation.
struct Times {
  std::vector<double> seconds;

  double Sum() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }
  double Percentile(double share) const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    const double rank = share * static_cast<double>(sorted.size());
    return sorted[std::min(static_cast<size_t>(rank), sorted.size() - 1)];
  }
};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "statestore_bench: %s\n", what.c_str());
  std::exit(1);
}
void Require(const absl::Status& status, const char* what) {
  if (!status.ok()) Fail(absl::StrCat(what, ": ", status.ToString()));
}

// A store in a directory of its own, that counts what it writes.
class BenchStore {
 public:
  BenchStore(const std::string& directory, const Options& options)
      : directory_(directory + "/store"), ids_([] { return absl::Now(); }) {
    options_.disk_reserve_bytes = 0;
    options_.min_file_bytes = options.min_file_bytes;
    options_.env = counting_.env.get();
    Open();
  }
  ~BenchStore() {
    store_.reset();
    fs::remove_all(directory_);
  }

  StateStore& operator*() { return *store_; }
  StateStore* operator->() { return store_.get(); }
  const std::string& directory() const { return directory_; }
  const CountingFileSystem& counts() const { return *counting_.system; }
  std::string NewId() { return ids_.NextStateId(); }

  void Open() {
    auto opened = OpenRocksDbStore(
        directory_, options_, [] { return absl::Now(); }, nullptr);
    Require(opened.status(), "open");
    store_ = *std::move(opened);
  }
  void Close() { store_.reset(); }

 private:
  const std::string directory_;
  statestore::UlidGenerator ids_;
  CountingEnv counting_;
  statestore::RocksDbOptions options_;
  std::unique_ptr<StateStore> store_;
};

// The states that are written, and as what they come back.
struct Samples {
  engine::StateLayout layout;
  StateCodec codec;
  std::vector<engine::StateBuffer> written, expected;

  Samples(uint64_t num_bytes, StateCodec of_codec)
      : layout(LayoutOfBytes(num_bytes)), codec(of_codec) {
    for (uint64_t i = 0; i < kNumSlots; ++i) {
      written.push_back(RandomSlot(layout, i));
      expected.push_back(RandomSlot(layout, i));
      statestore::RoundSlot(layout, codec, &expected.back());
    }
  }
  statestore::Commit CommitOf(const StateId& id, size_t index) const {
    statestore::Commit commit;
    commit.tenant = kBenchTenant;
    commit.states.push_back({BenchManifest(id, layout, codec), &written[index % kNumSlots]});
    return commit;
  }
  void Check(const engine::StateBuffer& slot, size_t index) const {
    const engine::StateBuffer& wanted = expected[index % kNumSlots];
    if (slot.size() != wanted.size() || std::memcmp(slot.data(), wanted.data(), slot.size()) != 0) {
      Fail("WRONG: a state came back with other bits");
    }
  }
};

Times GetAll(StateStore& store, const std::vector<StateId>& ids, const Samples& samples) {
  Times times;
  for (size_t i = 0; i < ids.size(); ++i) {
    const double begin = WallSeconds();
    const auto state = store.Load(kBenchTenant, ids[i]);
    times.seconds.push_back(WallSeconds() - begin);
    Require(state.status(), "get");
    samples.Check(state->slot, i);
  }
  return times;
}

nlohmann::json Row(const char* what, double mb, const std::string& codec, const Times& times,
                   const Times& raw) {
  const auto count = static_cast<double>(times.seconds.size());
  const auto raw_count = static_cast<double>(raw.seconds.size());
  const double mb_per_s = mb * count / times.Sum();
  const double raw_mb_per_s = mb * raw_count / raw.Sum();
  return {{"what", what},
          {"mb", mb},
          {"codec", codec},
          {"count", times.seconds.size()},
          {"p50_ms", times.Percentile(0.5) * 1e3},
          {"p99_ms", times.Percentile(0.99) * 1e3},
          {"mb_per_s", mb_per_s},
          {"raw_p50_ms", raw.Percentile(0.5) * 1e3},
          {"raw_mb_per_s", raw_mb_per_s},
          {"of", mb_per_s / raw_mb_per_s},
          {"of_p50", raw.Percentile(0.5) / times.Percentile(0.5)}};
}

int Repeats(const Options& options, uint64_t num_bytes) {
  if (options.repeats > 0) return options.repeats;
  if (options.quick) return 2;
  return static_cast<int>(std::clamp<uint64_t>(2'000'000'000 / num_bytes, 12, 100));
}

// Puts, cold gets and warm gets of one size and codec.
void MeasureSize(const std::string& directory, const Options& options, double wanted_mb,
                 const std::string& codec_name, nlohmann::json* report) {
  const Samples samples(static_cast<uint64_t>(wanted_mb * kMB),
                        *statestore::StateCodecFor(codec_name));
  const uint64_t slot_bytes = samples.layout.slot_bytes;
  const double mb = static_cast<double>(slot_bytes) / kMB;
  BenchStore store(directory, options);
  const auto raw_path = [&](size_t i) { return absl::StrCat(directory, "/raw.", i); };
  std::vector<StateId> ids;
  const auto put = [&](size_t i) {
    ids.push_back(store.NewId());
    const statestore::Commit commit = samples.CommitOf(ids.back(), i);
    const double begin = WallSeconds();
    Require(store->Apply(commit), "put");
    return WallSeconds() - begin;
  };
  put(0);
  GetAll(*store, ids, samples);  // verified before anything is timed
  ids.clear();

  Times puts, raw_writes, cold, raw_reads, warm, copies;
  const uint64_t appended_before = store.counts().appended_bytes();
  const uint64_t syncs_before = store.counts().num_syncs();
  const auto count = static_cast<size_t>(Repeats(options, slot_bytes));
  for (size_t i = 0; i < count; ++i) {
    raw_writes.seconds.push_back(
        TimeRawWrite(raw_path(i % kNumSlots), samples.written[i % kNumSlots].span()));
    puts.seconds.push_back(put(i));
  }
  nlohmann::json row = Row("put", mb, codec_name, puts, raw_writes);
  store.Close();  // what is in memory yet counts too
  const double put_bytes = static_cast<double>(slot_bytes * count);
  row["written_per_byte"] =
      static_cast<double>(store.counts().appended_bytes() - appended_before) / put_bytes;
  row["syncs_per_put"] =
      static_cast<double>(store.counts().num_syncs() - syncs_before) / static_cast<double>(count);
  report->push_back(row);

  const uint64_t resident_bytes = DropPageCache(directory);
  store.Open();
  cold = GetAll(*store, ids, samples);
  for (size_t i = 0; i < std::min(count, kNumSlots); ++i) {
    engine::StateBuffer read(slot_bytes);
    raw_reads.seconds.push_back(TimeRawRead(raw_path(i), read.span()));
  }
  row = Row("get, cold", mb, codec_name, cold, raw_reads);
  row["resident_bytes"] = resident_bytes;
  report->push_back(row);

  for (size_t i = 0; i < count; ++i) {
    copies.seconds.push_back(TimeCopy(samples.written[i % kNumSlots].span()));
  }
  GetAll(*store, ids, samples);
  warm = GetAll(*store, ids, samples);
  report->push_back(Row("get, warm", mb, codec_name, warm, copies));
  for (size_t i = 0; i < std::min(count, kNumSlots); ++i) fs::remove(raw_path(i));
}

// `num_writers` threads that put states one after the other.
void MeasureWriters(const std::string& directory, const Options& options, int num_writers,
                    nlohmann::json* report) {
  const Samples samples(static_cast<uint64_t>(options.writers_mb * kMB), StateCodec::kRaw);
  const double mb = static_cast<double>(samples.layout.slot_bytes) / kMB;
  BenchStore store(directory, options);
  const int total = options.quick ? 2 * num_writers : std::max(160, 8 * num_writers);
  const int per_writer = total / num_writers;
  std::vector<Times> times(static_cast<size_t>(num_writers));
  std::vector<std::vector<StateId>> ids(times.size());
  const uint64_t syncs_before = store.counts().num_syncs();
  const double begin = WallSeconds();
  std::vector<std::thread> threads;
  for (size_t writer = 0; writer < times.size(); ++writer) {
    threads.emplace_back([&, writer] {
      for (int i = 0; i < per_writer; ++i) {
        ids[writer].push_back(store.NewId());
        const statestore::Commit commit =
            samples.CommitOf(ids[writer].back(), static_cast<size_t>(i));
        const double put_begin = WallSeconds();
        Require(store->Apply(commit), "put");
        times[writer].seconds.push_back(WallSeconds() - put_begin);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = WallSeconds() - begin;
  const double num_syncs = static_cast<double>(store.counts().num_syncs() - syncs_before);
  Times all;
  for (const Times& of_one : times) {
    all.seconds.insert(all.seconds.end(), of_one.seconds.begin(), of_one.seconds.end());
  }
  for (const std::vector<StateId>& of_one : ids) GetAll(*store, of_one, samples);
  const auto count = static_cast<double>(all.seconds.size());
  report->push_back({{"writers", num_writers},
                     {"mb", mb},
                     {"count", all.seconds.size()},
                     {"puts_per_s", count / seconds},
                     {"mb_per_s", mb * count / seconds},
                     {"p50_ms", all.Percentile(0.5) * 1e3},
                     {"p99_ms", all.Percentile(0.99) * 1e3},
                     {"syncs_per_put", num_syncs / count}});
}

void PrintRow(const nlohmann::json& row) {
  std::printf("%-10s %8.2f %-5s %5d %9.2f %9.2f %9.0f %11.2f %9.0f %6.0f %%",
              row["what"].get<std::string>().c_str(), row["mb"].get<double>(),
              row["codec"].get<std::string>().c_str(), row["count"].get<int>(),
              row["p50_ms"].get<double>(), row["p99_ms"].get<double>(),
              row["mb_per_s"].get<double>(), row["raw_p50_ms"].get<double>(),
              row["raw_mb_per_s"].get<double>(), row["of"].get<double>() * 100);
  if (row.contains("written_per_byte")) {
    std::printf("  %.2f written per byte, %.1f syncs per put",
                row["written_per_byte"].get<double>(), row["syncs_per_put"].get<double>());
  }
  if (row.contains("resident_bytes") && row["resident_bytes"].get<uint64_t>() > 0) {
    std::printf("  %llu bytes stayed in memory",
                static_cast<unsigned long long>(row["resident_bytes"].get<uint64_t>()));
  }
  std::printf("\n");
}

void PrintReport(const nlohmann::json& report) {
  std::printf("store in %s; states of %s bytes or more in files of their own\n",
              report["directory"].get<std::string>().c_str(),
              report["min_file_bytes"].get<std::string>().c_str());
  std::printf("%-10s %8s %-5s %5s %9s %9s %9s %11s %9s %6s\n", "what", "MB", "codec", "count",
              "p50 ms", "p99 ms", "MB/s", "raw p50 ms", "raw MB/s", "of");
  for (const nlohmann::json& row : report["sizes"]) PrintRow(row);
  for (const nlohmann::json& row : report["writers"]) {
    std::printf(
        "%d writers of %.2f MB: %.0f puts/s, %.0f MB/s, p50 %.2f ms, p99 %.2f ms, "
        "%.2f syncs per put\n",
        row["writers"].get<int>(), row["mb"].get<double>(), row["puts_per_s"].get<double>(),
        row["mb_per_s"].get<double>(), row["p50_ms"].get<double>(), row["p99_ms"].get<double>(),
        row["syncs_per_put"].get<double>());
  }
}

bool Parse(int argc, char** argv, Options* options) {
  CLI::App app("The durable store, verified, then timed beside disk and memory.");
  app.add_option("--directory", options->directory,
                 "An existing one on the disk to measure; default: under TMPDIR or /tmp")
      ->check(CLI::ExistingDirectory);
  app.add_option("--sizes", options->sizes_mb, "States' sizes in MB")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 1000.0));
  app.add_option("--codecs", options->codecs)
      ->delimiter(',')
      ->check(CLI::IsMember({"raw", "zstd", "bf16"}));
  app.add_option("--writers", options->writers, "Threads that put at once; 0 = leave that out")
      ->delimiter(',')
      ->check(CLI::Range(0, 256));
  app.add_option("--writers-mb", options->writers_mb, "The size of what they put")
      ->check(CLI::Range(0.01, 1000.0));
  app.add_option("--repeats", options->repeats, "Puts of each size; default: 12 to 100")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--min-file-bytes", options->min_file_bytes,
                 "States of so many bytes get files of their own; default: the store's own");
  app.add_flag("--json", options->json, "Print one JSON object");
  app.add_option("--json-to", options->json_to, "Write it to this file too");
  app.add_flag("--quick", options->quick, "Verify, and time just enough to see that it runs");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return false;
  }
  if (options->quick) {
    options->sizes_mb = {0.25, 2.5};
    options->writers = {1, 4};
    options->writers_mb = 0.25;
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) return 2;
  const test::TempDir temporary;
  const std::string directory =
      (options.directory.empty() ? temporary.path() : options.directory) + "/statestore_bench";
  if (!fs::create_directory(directory)) Fail(directory + " exists");
  const bool is_never = options.min_file_bytes == std::numeric_limits<uint64_t>::max();
  nlohmann::json report = {
      {"directory", directory},
      {"min_file_bytes", is_never ? "infinitely many" : std::to_string(options.min_file_bytes)},
      {"sizes", nlohmann::json::array()},
      {"writers", nlohmann::json::array()}};
  for (const double mb : options.sizes_mb) {
    for (const std::string& codec : options.codecs) {
      MeasureSize(directory, options, mb, codec, &report["sizes"]);
    }
  }
  for (const int num_writers : options.writers) {
    if (num_writers > 0) MeasureWriters(directory, options, num_writers, &report["writers"]);
  }
  fs::remove_all(directory);
  if (options.json) {
    std::printf("%s\n", report.dump(1).c_str());
  } else {
    PrintReport(report);
  }
  if (!options.json_to.empty()) std::ofstream(options.json_to) << report.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
