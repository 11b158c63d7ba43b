// CublasLt: the few functions of cuBLASLt that products need, from the library that is found when
// the program starts. Nothing links to it, and no header of it is needed to build; where nvcc
// builds, what is declared here is checked against the toolkit's <cublasLt.h> (cublaslt_check.h).
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/device.h"

namespace vivarium::kernels::cuda {

// The library's own types and values, as its ABI has them from version 11 to 13.
namespace cublaslt {
inline constexpr int kSuccess = 0;      // CUBLAS_STATUS_SUCCESS
inline constexpr int kF32 = 0;          // CUDA_R_32F
inline constexpr int kBF16 = 14;        // CUDA_R_16BF
inline constexpr int kCompute32F = 68;  // CUBLAS_COMPUTE_32F
inline constexpr int kTranspose = 1;    // CUBLAS_OP_T
inline constexpr int kDescTransA = 3, kDescEpilogue = 7, kDescBiasPointer = 8;
inline constexpr int kLayoutCols = 3;
inline constexpr int kPreferenceMaxWorkspaceBytes = 1;
inline constexpr int kPreferenceMinAlignmentC = 7, kPreferenceMinAlignmentD = 8;
inline constexpr int kEpilogueDefault = 1, kEpilogueBias = 4;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
}  // namespace cublaslt

// One library, one handle. Not thread-safe.
class CublasLt {
 public:
  // `path`, or, when it is "", the newest version that the loader finds. Null, with a sentence in
  // *why, when there is none or it does not work here.
  static std::unique_ptr<CublasLt> Load(const std::string& path, std::string* why);
  ~CublasLt() {
    if (handle_) destroy(handle_);
    if (library_) dlclose(library_);
  }
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  void* handle() const { return handle_; }

  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*desc_create)(void** desc, int compute_type, int scale_type);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(void* layout);
  int (*layout_set)(void* layout, int attribute, const void* value, size_t bytes);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference,
                   int wanted, cublaslt::Heuristic* results, int* found);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout,
                const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                void* d, void* d_layout, const cublaslt::Algorithm* algorithm, void* workspace,
                size_t workspace_bytes, cudaStream_t stream);

 private:
  CublasLt() = default;
  // The name of what is missing, or null.
  const char* FindFunctions();
  template <typename Function>
  bool Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library_, name));
    return *function != nullptr;
  }

  void* library_ = nullptr;
  void* handle_ = nullptr;
};

inline const char* CublasLt::FindFunctions() {
  const char* missing = nullptr;
  const auto find = [&](const char* name, auto* function) {
    if (!Find(name, function)) missing = name;
  };
  find("cublasLtCreate", &create);
  find("cublasLtDestroy", &destroy);
  find("cublasLtMatmulDescCreate", &desc_create);
  find("cublasLtMatmulDescDestroy", &desc_destroy);
  find("cublasLtMatmulDescSetAttribute", &desc_set);
  find("cublasLtMatrixLayoutCreate", &layout_create);
  find("cublasLtMatrixLayoutDestroy", &layout_destroy);
  find("cublasLtMatrixLayoutSetAttribute", &layout_set);
  find("cublasLtMatmulPreferenceCreate", &preference_create);
  find("cublasLtMatmulPreferenceDestroy", &preference_destroy);
  find("cublasLtMatmulPreferenceSetAttribute", &preference_set);
  find("cublasLtMatmulAlgoGetHeuristic", &heuristic);
  find("cublasLtMatmul", &matmul);
  return missing;
}

inline std::unique_ptr<CublasLt> CublasLt::Load(const std::string& path, std::string* why) {
  std::unique_ptr<CublasLt> loaded(new CublasLt);
  if (!path.empty()) {
    loaded->library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  } else {
#if !defined(__CUDACC__)
    *why = "not looked for on an emulated device, whose memory is the host's";
    return nullptr;
#endif
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"}) {
      loaded->library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (loaded->library_) break;
    }
  }
  if (!loaded->library_) {
    const char* error = dlerror();
    *why = error ? error : "not found";
    return nullptr;
  }
  if (const char* missing = loaded->FindFunctions()) {
    *why = "it has no function " + std::string(missing);
    return nullptr;
  }
  if (const int status = loaded->create(&loaded->handle_); status != cublaslt::kSuccess) {
    loaded->handle_ = nullptr;
    *why = "it does not start (status " + std::to_string(status) + ")";
    return nullptr;
  }
  return loaded;
}

}  // namespace vivarium::kernels::cuda
