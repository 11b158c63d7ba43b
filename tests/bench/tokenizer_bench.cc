// tokenizer_bench: encoding and decoding, verified, then timed.
//
//   tokenizer_bench [--json] [--quick] [--model DIR]... [--file TEXT]
//
// DIR has a tokenizer.json (default: GPT-2's, GPT-NeoX's and the bundled model's). TEXT is encoded
// whole (default: words drawn from a small English vocabulary). Time is this thread's CPU time, so
// that a machine that others share gives the same figures; the best of several runs.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tests/support/test_environment.h"

namespace vivarium::bench {
namespace {

using engine::Tokenizer;

constexpr double kGoalMbPerSecond = 5.0;  // encoding English, one core

struct Options {
  bool json = false;
  bool quick = false;
  std::vector<std::string> dirs;
  std::string file;
};

struct Figure {
  std::string tokenizer;
  std::string what;
  size_t num_bytes = 0;
  size_t num_ids = 0;
  double best_s = 0;

  double MbPerSecond() const { return static_cast<double>(num_bytes) / best_s / 1e6; }
};

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double BestSeconds(int num_runs, const std::function<void()>& run) {
  double best_s = 0;
  for (int i = 0; i < num_runs; ++i) {
    const double begin = CpuSeconds();
    run();
    const double seconds = CpuSeconds() - begin;
    if (i == 0 || seconds < best_s) best_s = seconds;
  }
  return best_s;
}

// English in its mixture of frequent and rare words (Zipf's law), sentences and paragraphs; rare
// words are made of syllables, so that they must be merged.
std::string GeneratedText(size_t num_bytes) {
  static constexpr const char* kFrequent[] = {
      "the",  "of",   "and",   "to",    "a",     "in",    "that",   "it",     "was",   "he",
      "for",  "on",   "with",  "his",   "as",    "I'll",  "they",   "don't",  "her",   "which",
      "said", "from", "would", "there", "their", "could", "little", "people", "house", "because"};
  static constexpr const char* kSyllables[] = {"an",  "ter", "mol",  "ing", "est", "pro", "ver",
                                               "con", "ul",  "tion", "ra",  "sh",  "qu",  "ex"};
  std::mt19937_64 rng(1);
  const auto below = [&rng](size_t n) { return static_cast<size_t>(rng() % n); };
  std::string text;
  while (text.size() < num_bytes) {
    const size_t num_words = 6 + below(14);
    for (size_t i = 0; i < num_words; ++i) {
      std::string word;
      const double uniform = static_cast<double>(below(1 << 20) + 1) / (1 << 20);
      const double rank = 1.0 / uniform - 1.0;
      if (rank < std::size(kFrequent)) {
        word = kFrequent[static_cast<size_t>(rank)];
      } else {
        for (size_t n = 2 + below(3); n > 0; --n) word += kSyllables[below(std::size(kSyllables))];
      }
      if (i == 0) word[0] = static_cast<char>(word[0] & ~0x20);
      text += i == 0 ? "" : " ";
      text += word;
      if (below(12) == 0 && i + 1 < num_words) text += ',';
    }
    text += below(8) == 0 ? ".\n\n" : ". ";
  }
  return text;
}

std::string Repeated(const std::string& unit, size_t num_bytes) {
  std::string text;
  while (text.size() < num_bytes) text += unit;
  return text;
}

// The text must come back; where the tokenizer normalizes it, what comes back must have the same
// ids.
bool Verify(const Tokenizer& tokenizer, const std::string& text, const std::string& what) {
  const auto ids = tokenizer.Encode(text, {});
  if (!ids.ok()) {
    std::cerr << what << ": " << ids.status() << "\n";
    return false;
  }
  const std::string decoded = tokenizer.Decode(*ids, false);
  if (decoded == text) return true;
  const auto again = tokenizer.Encode(decoded, {});
  if (again.ok() && *again == *ids) return true;
  std::cerr << what << ": decoding and encoding again gives other ids\n";
  return false;
}

std::optional<std::vector<Figure>> Measure(const std::string& dir, const std::string& english,
                                           const Options& options) {
  std::vector<Figure> figures;
  const int num_runs = options.quick ? 1 : 7;
  const auto loaded = Tokenizer::Load(dir);
  if (!loaded.ok()) {
    std::cerr << loaded.status() << "\n";
    return std::nullopt;
  }
  const Tokenizer& tokenizer = **loaded;
  const std::string name = dir.substr(dir.find_last_of('/') + 1);
  figures.push_back({name, "load", 0, 0,
                     BestSeconds(options.quick ? 1 : 3, [&] { (void)Tokenizer::Load(dir).ok(); })});
  const size_t hostile_bytes = options.quick ? size_t{1} << 14 : size_t{1} << 20;
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"english", english},
      {"one letter", Repeated("a", hostile_bytes)},
      {"spaces", Repeated(" ", hostile_bytes)},
      {"emoji", Repeated("\U0001F642", hostile_bytes)}};
  for (const auto& [what, text] : texts) {
    if (!Verify(tokenizer, text, name + ", " + what)) return std::nullopt;
    std::vector<int32_t> ids;
    const double encode_s = BestSeconds(num_runs, [&] { ids = *tokenizer.Encode(text, {}); });
    figures.push_back({name, "encode " + what, text.size(), ids.size(), encode_s});
    if (what != "english") continue;
    const double decode_s = BestSeconds(num_runs, [&] { (void)tokenizer.Decode(ids, false); });
    figures.push_back({name, "decode " + what, text.size(), ids.size(), decode_s});
  }
  return figures;
}

void PrintTable(const std::vector<Figure>& figures) {
  std::printf("%-18s %-20s %10s %10s %10s %10s\n", "tokenizer", "", "bytes", "ids", "ms", "MB/s");
  for (const Figure& figure : figures) {
    std::printf("%-18s %-20s %10zu %10zu %10.2f", figure.tokenizer.c_str(), figure.what.c_str(),
                figure.num_bytes, figure.num_ids, figure.best_s * 1e3);
    if (figure.num_bytes > 0) std::printf(" %10.1f", figure.MbPerSecond());
    if (figure.what == "encode english") {
      std::printf("  %.1f x the goal of %.0f MB/s", figure.MbPerSecond() / kGoalMbPerSecond,
                  kGoalMbPerSecond);
    }
    std::printf("\n");
  }
}

void PrintJson(const std::vector<Figure>& figures) {
  nlohmann::json out = nlohmann::json::array();
  for (const Figure& figure : figures) {
    out.push_back({{"tokenizer", figure.tokenizer},
                   {"what", figure.what},
                   {"num_bytes", figure.num_bytes},
                   {"num_ids", figure.num_ids},
                   {"best_cpu_s", figure.best_s}});
    if (figure.num_bytes > 0) out.back()["mb_per_s"] = figure.MbPerSecond();
  }
  std::cout << out.dump(1) << "\n";
}

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--json") {
      options->json = true;
    } else if (arg == "--quick") {
      options->quick = true;
    } else if (arg == "--model" && i + 1 < argc) {
      options->dirs.emplace_back(argv[++i]);
    } else if (arg == "--file" && i + 1 < argc) {
      options->file = argv[++i];
    } else {
      std::cerr << "usage: tokenizer_bench [--json] [--quick] [--model DIR]... [--file TEXT]\n";
      return false;
    }
  }
  if (options->dirs.empty()) {
    const std::string root = test::RootDir();
    options->dirs = {root + "/tests/data/tokenizer/gpt2", root + "/tests/data/tokenizer/neox",
                     root + "/models/vivarium-stories"};
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) return 2;
  std::string english;
  if (options.file.empty()) {
    english = GeneratedText(options.quick ? size_t{1} << 16 : size_t{4} << 20);
  } else {
    std::ifstream file(options.file, std::ios::binary);
    english.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (english.empty()) {
      std::cerr << options.file << ": cannot be read, or empty\n";
      return 1;
    }
  }
  std::vector<Figure> figures;
  for (const std::string& dir : options.dirs) {
    const auto measured = Measure(dir, english, options);
    if (!measured.has_value()) return 1;
    figures.insert(figures.end(), measured->begin(), measured->end());
  }
  options.json ? PrintJson(figures) : PrintTable(figures);
  return 0;
}

}  // namespace
}  // namespace vivarium::bench

int main(int argc, char** argv) { return vivarium::bench::Main(argc, argv); }
