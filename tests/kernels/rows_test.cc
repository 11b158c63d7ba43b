// EmbeddingGather and GatherRows: copies, so exact; int8 rows have one rounding, by their scale.
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/isa_fixture.h"

namespace vivarium::kernels {
namespace {

class RowsTest : public IsaTest {};
VIVARIUM_FOR_EACH_ISA(RowsTest);

TEST_P(RowsTest, EmbeddingWidensExactly) {
  for (const int64_t d_model : {1, 15, 16, 17, 64, 100}) {
    for (const int64_t num_tokens : {0, 1, 2, 700}) {
      const int64_t vocab_size = 75;  // more than a panel; the last vector is not full
      const std::unique_ptr<Backend> backend = MakeBackend(2);
      std::vector<uint16_t> bf16(static_cast<size_t>(vocab_size * d_model));
      RandomValues random(1);
      for (uint16_t& bits : bf16) bits = F32ToBF16(random.Normal());
      std::vector<float> f32(bf16.size());
      ConvertToF32(bf16.data(), DType::kBF16, bf16.size(), f32.data());
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < num_tokens; ++t) {
        ids.push_back(
            static_cast<int32_t>(t < 2 ? t * (vocab_size - 1) : random.Below(vocab_size)));
      }
      std::vector<int8_t> q(f32.size());
      std::vector<float> scales(static_cast<size_t>(vocab_size)), scaled(f32.size());
      QuantizeRows(f32.data(), DType::kF32, vocab_size, d_model, q.data(), scales.data());
      for (size_t i = 0; i < q.size(); ++i) {
        scaled[i] = static_cast<float>(q[i]) * scales[i / static_cast<size_t>(d_model)];
      }
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
        const auto table =
            dtype == DType::kI8
                ? backend->PackInt8(q.data(), scales.data(), vocab_size, d_model)
                : backend->Pack(bf16.data(), DType::kBF16, vocab_size, d_model, dtype);
        const std::vector<float>& expected = dtype == DType::kI8 ? scaled : f32;
        GuardedArray out(num_tokens * d_model);
        backend->EmbeddingGather({table.get(), ids.data(), out.data(), num_tokens});
        for (int64_t t = 0; t < num_tokens; ++t) {
          ASSERT_TRUE(SameBits(out.data() + t * d_model,
                               expected.data() + ids[static_cast<size_t>(t)] * d_model, d_model))
              << DTypeName(dtype) << " " << d_model;
        }
      }
    }
  }
}

TEST_P(RowsTest, GathersRows) {
  const int64_t channels = 19;
  GuardedArray x(8 * channels);
  RandomValues(2).Fill(x.data(), x.size());
  const std::vector<int32_t> index = {7, 0, 3, 3};
  GuardedArray out(4 * channels);
  const std::unique_ptr<Backend> backend = MakeBackend(2);
  backend->GatherRows({x.data(), index.data(), out.data(), 4, channels});
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(SameBits(out.data() + i * channels,
                         x.data() + index[static_cast<size_t>(i)] * channels, channels));
  }
  backend->GatherRows({x.data(), nullptr, nullptr, 0, channels});
}

}  // namespace
}  // namespace vivarium::kernels
