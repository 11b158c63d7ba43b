#include "tests/cuda_on_cpu/fake_cublaslt.h"

#include <cstddef>
#include <cstring>
#include <utility>

#include "kernels/dtype.h"

namespace {

constexpr int kSuccess = 0, kNotInitialized = 1, kInvalid = 7, kNotSupported = 15, kFailed = 13;
constexpr int kF32 = 0, kBF16 = 14, kCompute32F = 68;
constexpr uint64_t kAlgorithmMark = 0x5eedULL;

struct Desc {
  int transpose_a = 0;
  int epilogue = 1;
  const float* bias = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference {
  uint64_t workspace_bytes = 0;
  uint32_t alignment_c = 256, alignment_d = 256;
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

int Refuse(const char* what) {
  if (fake_cublaslt()->wrong.empty()) fake_cublaslt()->wrong = what;
  return kInvalid;
}

template <typename T>
int Set(T* target, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return Refuse("size of an attribute");
  std::memcpy(target, value, bytes);
  return kSuccess;
}

bool IsAligned(const void* pointer, size_t alignment) {
  return reinterpret_cast<uintptr_t>(pointer) % alignment == 0;
}

// The shape that both the query and the product must have: column-major, A transposed.
bool Fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
  return desc.transpose_a == 1 && a.type == kBF16 && b.type == kBF16 && d.type == kF32 &&
         a.rows == b.rows && a.cols == d.rows && b.cols == d.cols && a.rows % 8 == 0 &&
         a.ld >= static_cast<int64_t>(a.rows) && b.ld >= static_cast<int64_t>(b.rows) &&
         d.ld >= static_cast<int64_t>(d.rows) && (desc.epilogue == 1 || desc.epilogue == 4);
}

void Multiply(const Desc& desc, const uint16_t* a, const Layout& la, const uint16_t* b,
              const Layout& lb, float* d, const Layout& ld) {
  for (uint64_t token = 0; token < ld.cols; ++token) {
    for (uint64_t row = 0; row < ld.rows; ++row) {
      double sum = desc.epilogue == 4 ? desc.bias[row] : 0.0;
      for (uint64_t k = 0; k < la.rows; ++k) {
        sum += static_cast<double>(vivarium::kernels::BF16ToF32(a[row * la.ld + k])) *
               vivarium::kernels::BF16ToF32(b[token * lb.ld + k]);
      }
      d[token * ld.ld + row] = static_cast<float>(sum);
    }
  }
}

}  // namespace

extern "C" {

FakeCublasLt* fake_cublaslt() {
  static FakeCublasLt fake;
  return &fake;
}

int cublasLtCreate(void** handle) {
  if (!fake_cublaslt()->starts) return kNotInitialized;
  ++fake_cublaslt()->num_handles;
  *handle = fake_cublaslt();
  return kSuccess;
}
int cublasLtDestroy(void*) {
  --fake_cublaslt()->num_handles;
  return kSuccess;
}
int cublasLtMatmulDescCreate(void** desc, int compute_type, int scale_type) {
  if (compute_type != kCompute32F || scale_type != kF32) return Refuse("types of a product");
  ++fake_cublaslt()->num_descs;
  *desc = new Desc;
  return kSuccess;
}
int cublasLtMatmulDescDestroy(void* desc) {
  --fake_cublaslt()->num_descs;
  delete static_cast<Desc*>(desc);
  return kSuccess;
}
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  auto* d = static_cast<Desc*>(desc);
  if (attribute == 3) return Set(&d->transpose_a, value, bytes);
  if (attribute == 7) return Set(&d->epilogue, value, bytes);
  if (attribute == 8) return Set(&d->bias, value, bytes);
  return Refuse("attribute of a product");
}
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  ++fake_cublaslt()->num_layouts;
  *layout = new Layout{type, rows, cols, ld};
  return kSuccess;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
  --fake_cublaslt()->num_layouts;
  delete static_cast<Layout*>(layout);
  return kSuccess;
}
int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value, size_t bytes) {
  auto* l = static_cast<Layout*>(layout);
  return attribute == 3 ? Set(&l->cols, value, bytes) : Refuse("attribute of a layout");
}
int cublasLtMatmulPreferenceCreate(void** preference) {
  ++fake_cublaslt()->num_preferences;
  *preference = new Preference;
  return kSuccess;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
  --fake_cublaslt()->num_preferences;
  delete static_cast<Preference*>(preference);
  return kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                         size_t bytes) {
  auto* p = static_cast<Preference*>(preference);
  if (attribute == 1) return Set(&p->workspace_bytes, value, bytes);
  if (attribute == 7) return Set(&p->alignment_c, value, bytes);
  if (attribute == 8) return Set(&p->alignment_d, value, bytes);
  return Refuse("attribute of a preference");
}
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d,
                                   void* preference, int wanted, void* results, int* found) {
  FakeCublasLt* fake = fake_cublaslt();
  const auto& p = *static_cast<Preference*>(preference);
  const auto &la = *static_cast<Layout*>(a), &lb = *static_cast<Layout*>(b),
             &ld = *static_cast<Layout*>(d);
  fake->queries.push_back({la.cols, la.rows, ld.cols});
  *found = 0;
  if (handle != fake || c != d || wanted < 1 || !Fits(*static_cast<Desc*>(desc), la, lb, ld)) {
    return Refuse("arguments of a query");
  }
  if (p.workspace_bytes == 0 || p.alignment_c > 16 || p.alignment_d > 16) {
    return Refuse("preference of a query");
  }
  if (!fake->finds_algorithms) return kNotSupported;
  auto* result = static_cast<Heuristic*>(results);
  *result = {};
  // An algorithm of one shape is no algorithm of another.
  result->algorithm[0] = kAlgorithmMark;
  result->algorithm[1] = la.cols;
  result->algorithm[2] = la.rows;
  result->workspace_bytes = p.workspace_bytes;
  *found = 1;
  return kSuccess;
}
int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const void* algorithm, void* workspace,
                   size_t workspace_bytes, void*) {
  FakeCublasLt* fake = fake_cublaslt();
  const auto& description = *static_cast<Desc*>(desc);
  const auto &la = *static_cast<Layout*>(a_layout), &lb = *static_cast<Layout*>(b_layout),
             &ld = *static_cast<Layout*>(d_layout);
  fake->matmuls.push_back({la.cols, la.rows, ld.cols});
  if (fake->failing_matmul == static_cast<int>(fake->matmuls.size()) - 1) return kFailed;
  uint64_t mark[3];
  std::memcpy(mark, algorithm, sizeof(mark));
  if (mark[0] != kAlgorithmMark || mark[1] != la.cols || mark[2] != la.rows) {
    return Refuse("algorithm of a product");
  }
  if (handle != fake || c != d || c_layout != d_layout || !Fits(description, la, lb, ld)) {
    return Refuse("arguments of a product");
  }
  if (*static_cast<const float*>(alpha) != 1.0f || *static_cast<const float*>(beta) != 0.0f) {
    return Refuse("scales of a product");
  }
  if (!IsAligned(a, 256) || !IsAligned(b, 256) || !IsAligned(d, 16) || workspace == nullptr ||
      workspace_bytes == 0 || (description.epilogue == 4) != (description.bias != nullptr)) {
    return Refuse("memory of a product");
  }
  fake->run([=, desc = description, wa = la, wb = lb, wd = ld] {
    std::memset(workspace, 0x5a, workspace_bytes);
    Multiply(desc, static_cast<const uint16_t*>(a), wa, static_cast<const uint16_t*>(b), wb,
             static_cast<float*>(d), wd);
  });
  return kSuccess;
}

}  // extern "C"
