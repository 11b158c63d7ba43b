// Products through cuBLASLt, played by a library that computes on the host (fake_cublaslt.h).
#include "kernels/cuda/library_linear.cuh"

#include <dlfcn.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/cuda_on_cpu/fake_cublaslt.h"
#include "tests/kernels/expect_near.h"
#include "tests/kernels/guarded_array.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/tolerances.h"

namespace vivarium::kernels {
namespace {

using ::testing::HasSubstr;

class LibraryLinearTest : public testing::Test {
 protected:
  void SetUp() override {
    library_ = dlopen(VIVARIUM_FAKE_CUBLASLT, RTLD_NOW);
    if (library_ == nullptr) GTEST_SKIP() << dlerror();  // tests that were moved elsewhere
    fake_ = reinterpret_cast<FakeCublasLt* (*)()>(dlsym(library_, "fake_cublaslt"))();
    *fake_ = FakeCublasLt{};
    fake_->run = cuda_on_cpu::RunOrRecord;
  }
  void TearDown() override {
    if (library_ == nullptr) return;
    EXPECT_EQ(fake_->wrong, "");
    EXPECT_EQ(std::tuple(fake_->num_descs, fake_->num_layouts, fake_->num_preferences,
                         fake_->num_handles),
              std::tuple(0, 0, 0, 0));
    fake_->run = nullptr;
    dlclose(library_);
  }

  static std::unique_ptr<Backend> Make(bool deterministic,
                                       const std::string& path = VIVARIUM_FAKE_CUBLASLT) {
    std::string error;
    auto backend =
        Backend::Create("cuda:0", {.deterministic = deterministic, .cublaslt = path}, &error);
    EXPECT_NE(backend, nullptr) << error;
    return backend;
  }

  void* library_ = nullptr;
  FakeCublasLt* fake_ = nullptr;
};

// One product, and what it should be.
struct Product {
  Product(int64_t tokens, int64_t num_rows, int64_t num_cols, bool with_bias)
      : num_tokens(tokens),
        rows(num_rows),
        cols(num_cols),
        has_bias(with_bias),
        w(static_cast<size_t>(rows * cols)),
        x(num_tokens * (cols + 3)),
        bias(rows),
        out(num_tokens * out_stride()) {
    RandomValues random(static_cast<uint64_t>(tokens + rows + cols));
    random.Fill(w.data(), rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
    for (float& value : w) value = BF16ToF32(F32ToBF16(value));
    random.FillRows(x.data(), num_tokens, cols, cols + 3);
    random.Fill(bias.data(), rows);
  }
  int64_t out_stride() const { return (rows + 15) / 16 * 16; }
  std::unique_ptr<PackedMatrix> Pack(Backend* backend) const {
    return backend->Pack(w.data(), DType::kF32, rows, cols, DType::kBF16);
  }
  LinearParams Params(const PackedMatrix& weight, float* to) {
    return {x.data(), cols + 3,     &weight,   has_bias ? bias.data() : nullptr,
            to,       out_stride(), num_tokens};
  }
  void Expect(const float* found) const {
    std::vector<float> seen(x.data(), x.data() + x.size());
    for (float& value : seen) value = BF16ToF32(F32ToBF16(value));
    ExpectNear(found, out_stride(),
               ReferenceLinear(seen.data(), cols + 3, w.data(), has_bias ? bias.data() : nullptr,
                               num_tokens, rows, cols),
               num_tokens, rows, kTolerances.linear, "library linear");
  }

  const int64_t num_tokens, rows, cols;
  const bool has_bias;
  std::vector<float> w;
  GuardedArray x, bias, out;
};

// 16-byte aligned, as a model's activations are.
class Output {
 public:
  explicit Output(Backend* backend, int64_t size)
      : backend_(backend), data_(static_cast<float*>(backend->Allocate(size * sizeof(float)))) {}
  ~Output() { backend_->Free(data_); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  float* data() { return data_; }

 private:
  Backend* const backend_;
  float* const data_;
};

TEST_F(LibraryLinearTest, ManyRowsAreTheLibrarysFewAreOurs) {
  const auto backend = Make(false);
  EXPECT_EQ(backend->numerics_name(), "cuda-v1-cublaslt");
  EXPECT_EQ(backend->notice(), "");
  for (const auto& [tokens, rows, cols] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 40, 24}, {32, 40, 24}, {33, 40, 24}, {64, 7, 5}, {65, 130, 47}, {200, 20, 18}}) {
    for (const bool has_bias : {false, true}) {
      Product product(tokens, rows, cols, has_bias);
      const auto weight = product.Pack(backend.get());
      Output out(backend.get(), product.out.size());
      const size_t before = fake_->matmuls.size();
      backend->Linear(product.Params(*weight, out.data()));
      backend->Synchronize();
      product.Expect(out.data());
      EXPECT_EQ(fake_->matmuls.size() - before, tokens >= cuda::kMinLibraryRows ? 1u : 0u);
    }
  }
}

// More rows than the staging holds: in pieces.
TEST_F(LibraryLinearTest, PiecesOfManyRows) {
  const auto backend = Make(false);
  Product product(cuda::kMaxLibraryRows + 40, 3, 9, true);
  const auto weight = product.Pack(backend.get());
  Output out(backend.get(), product.out.size());
  backend->Linear(product.Params(*weight, out.data()));
  backend->Synchronize();
  product.Expect(out.data());
  ASSERT_EQ(fake_->matmuls.size(), 2u);
  EXPECT_EQ(fake_->matmuls[1].tokens, 40u);
}

TEST_F(LibraryLinearTest, AsksOncePerBucket) {
  const auto backend = Make(false);
  Product product(128, 24, 16, false);
  const auto weight = product.Pack(backend.get());
  Output out(backend.get(), product.out.size());
  for (const int64_t tokens : {33, 64, 40, 65, 128, 100, 64}) {
    LinearParams params = product.Params(*weight, out.data());
    params.num_tokens = tokens;
    backend->Linear(params);
  }
  ASSERT_EQ(fake_->queries.size(), 2u);
  EXPECT_EQ(fake_->queries[0].tokens, 64u);
  EXPECT_EQ(fake_->queries[1].tokens, 128u);
  EXPECT_EQ(fake_->matmuls.size(), 7u);
  EXPECT_EQ(fake_->matmuls[2].tokens, 40u);
}

TEST_F(LibraryLinearTest, RunsFromARecording) {
  const auto backend = Make(false);
  Product product(40, 24, 16, true);
  const auto weight = product.Pack(backend.get());
  Output out(backend.get(), product.out.size());
  ASSERT_TRUE(backend->BeginRecording());
  backend->Linear(product.Params(*weight, out.data()));
  const auto recording = backend->EndRecording();
  ASSERT_NE(recording, nullptr);
  for (int i = 0; i < 2; ++i) {
    backend->Zero(out.data(), static_cast<size_t>(product.out.size()) * sizeof(float));
    backend->Replay(*recording);
    backend->Synchronize();
    product.Expect(out.data());
  }
  EXPECT_EQ(fake_->matmuls.size(), 1u);
}

// What the library won't do, the own kernels do, from the row on where it stopped.
TEST_F(LibraryLinearTest, FallsBack) {
  const auto backend = Make(false);
  Product product(cuda::kMaxLibraryRows + 70, 3, 9, true);
  const auto weight = product.Pack(backend.get());
  Output out(backend.get(), product.out.size());
  fake_->failing_matmul = 1;
  backend->Linear(product.Params(*weight, out.data()));
  backend->Synchronize();
  product.Expect(out.data());
  EXPECT_EQ(fake_->matmuls.size(), 2u);

  fake_->finds_algorithms = false;
  Product other(50, 30, 20, false);
  const auto other_weight = other.Pack(backend.get());
  Output other_out(backend.get(), other.out.size() + 1);
  for (float* to : {other_out.data(), other_out.data() + 1}) {  // the second is not aligned
    backend->Linear(other.Params(*other_weight, to));
    backend->Synchronize();
    other.Expect(to);
  }
  EXPECT_EQ(fake_->matmuls.size(), 2u);
}

TEST_F(LibraryLinearTest, DeterministicNeverAsks) {
  const auto backend = Make(true);
  EXPECT_EQ(backend->numerics_name(), "cuda-v1");
  Product product(70, 24, 16, false);
  const auto weight = product.Pack(backend.get());
  Output out(backend.get(), product.out.size());
  backend->Linear(product.Params(*weight, out.data()));
  backend->Synchronize();
  product.Expect(out.data());
  EXPECT_EQ(fake_->queries.size() + fake_->matmuls.size(), 0u);
  EXPECT_LT(weight->bytes(), product.Pack(Make(false).get())->bytes());
}

TEST_F(LibraryLinearTest, SaysWhyThereIsNone) {
  EXPECT_THAT(Make(false, "/no/such/library.so")->notice(),
              AllOf(HasSubstr("cuBLASLt: "), HasSubstr("/no/such/library.so")));
  EXPECT_EQ(Make(false, "/no/such/library.so")->numerics_name(), "cuda-v1");
  EXPECT_THAT(Make(false, "libm.so.6")->notice(), HasSubstr("it has no function cublasLt"));
  fake_->starts = false;
  EXPECT_THAT(Make(false)->notice(), HasSubstr("it does not start (status 1)"));
  EXPECT_EQ(Make(true, "/no/such/library.so")->notice(), "");
}

}  // namespace
}  // namespace vivarium::kernels
