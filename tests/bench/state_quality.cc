// state_quality [DIR]: what states in bf16 cost, against states in f32: bits per byte of held-out
// stories, and how far logits move over long texts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tests/support/model_harness.h"
#include "tests/support/test_environment.h"

namespace vivarium {
namespace {

constexpr char kEndOfText[] = "<|endoftext|>";
constexpr int32_t kEndOfTextId = 0;
constexpr int32_t kChunk = 256;

std::unique_ptr<test::ModelHarness> Load(const std::string& directory, engine::WeightFormat weights,
                                         kernels::DType state_dtype) {
  test::HarnessOptions options;
  options.weights = weights;
  options.state_dtype = state_dtype;
  options.num_threads = 2;
  options.num_slots = 1;
  auto harness = test::ModelHarness::Load(directory, options);
  if (!harness.ok()) {
    std::fprintf(stderr, "%s\n", harness.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(harness);
}

// Every story between two end-of-text tokens.
std::vector<std::vector<int32_t>> ReadStories(const engine::Tokenizer& tokenizer,
                                              const std::string& path, int64_t* num_bytes) {
  std::vector<std::vector<int32_t>> stories;
  std::ifstream in(path);
  std::string story;
  for (std::string line; std::getline(in, line);) {
    if (line != kEndOfText) {
      story += story.empty() ? line : "\n" + line;
      continue;
    }
    std::vector<int32_t> ids = {kEndOfTextId};
    const auto encoded = tokenizer.Encode(story, {});
    if (!encoded.ok()) std::exit(1);
    ids.insert(ids.end(), encoded->begin(), encoded->end());
    ids.push_back(kEndOfTextId);
    *num_bytes += static_cast<int64_t>(story.size());
    story.clear();
    stories.push_back(std::move(ids));
  }
  return stories;
}

double Nats(std::span<const int32_t> ids, std::span<const float> logits, int64_t vocab) {
  double nats = 0.0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto row = logits.subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0.0;
    for (const float logit : row) sum += std::exp(logit - largest);
    nats += std::log(sum) + largest - row[static_cast<size_t>(ids[i + 1])];
  }
  return nats;
}

struct Distance {
  float max_logit = 0.0f;   // of all rows and ids
  float last_logit = 0.0f;  // of the last 100 rows
  int same_best = 0;        // rows whose most likely token is the same
};

Distance Compare(std::span<const float> a, std::span<const float> b, int64_t vocab) {
  Distance distance;
  const size_t rows = a.size() / static_cast<size_t>(vocab);
  for (size_t row = 0; row < rows; ++row) {
    const auto x = a.subspan(row * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
    const auto y = b.subspan(row * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
    float largest = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::fabs(x[i] - y[i]));
    distance.max_logit = std::max(distance.max_logit, largest);
    if (row + 100 >= rows) distance.last_logit = std::max(distance.last_logit, largest);
    distance.same_best += std::max_element(x.begin(), x.end()) - x.begin() ==
                          std::max_element(y.begin(), y.end()) - y.begin();
  }
  return distance;
}

void Measure(const std::string& directory, engine::WeightFormat weights, const char* name) {
  const auto tokenizer = engine::Tokenizer::Load(directory);
  if (!tokenizer.ok()) std::exit(1);
  int64_t num_bytes = 0;
  const auto stories =
      ReadStories(**tokenizer, test::RootDir() + "/tests/data/stories/heldout.txt", &num_bytes);
  const auto wide = Load(directory, weights, kernels::DType::kF32);
  const auto narrow = Load(directory, weights, kernels::DType::kBF16);
  std::printf("%s weights; a state takes %llu bytes with f32, %llu with bf16\n", name,
              static_cast<unsigned long long>(wide->model().state_layout().slot_bytes),
              static_cast<unsigned long long>(narrow->model().state_layout().slot_bytes));
  double nats[2] = {0.0, 0.0};
  std::vector<int32_t> text;
  for (const auto& ids : stories) {
    for (const auto& [harness, sum] : {std::pair{wide.get(), &nats[0]}, {narrow.get(), &nats[1]}}) {
      harness->ZeroSlot(0);
      *sum += Nats(ids, harness->Feed(ids, 0, kChunk), harness->vocab());
    }
    text.insert(text.end(), ids.begin(), ids.end() - 1);
  }
  const double per_byte = 1.0 / std::log(2.0) / static_cast<double>(num_bytes);
  std::printf("  bits per byte: f32 %.5f, bf16 %.5f\n", nats[0] * per_byte, nats[1] * per_byte);
  for (const size_t num_tokens : {size_t{1000}, size_t{10000}}) {
    const auto ids = std::span<const int32_t>(text).first(std::min(num_tokens, text.size()));
    wide->ZeroSlot(0);
    narrow->ZeroSlot(0);
    const std::vector<float> expected = wide->Feed(ids, 0, kChunk);
    const std::vector<float> found = narrow->Feed(ids, 0, kChunk);
    const Distance distance = Compare(expected, found, wide->vocab());
    std::printf(
        "  %zu tokens: largest logit error %.4f, of the last 100 rows %.4f; "
        "the same best token in %.2f %% of rows\n",
        ids.size(), distance.max_logit, distance.last_logit,
        100.0 * distance.same_best / static_cast<double>(ids.size()));
  }
}

}  // namespace
}  // namespace vivarium

int main(int argc, char** argv) {
  const std::string directory =
      argc > 1 ? argv[1] : vivarium::test::RootDir() + "/models/vivarium-stories";
  vivarium::Measure(directory, vivarium::engine::WeightFormat::kF32, "f32");
  vivarium::Measure(directory, vivarium::engine::WeightFormat::kBF16, "bf16");
  return 0;
}
