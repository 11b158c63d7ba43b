#include "kernels/cpu/isa_choice.h"

namespace vivarium::kernels {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports asks cpuid and whether the system saves the registers.
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#else
bool HasAvx2() { return false; }
bool HasAvx512() { return false; }
const OpTable* Avx2Ops() { return nullptr; }
const OpTable* Avx512Ops() { return nullptr; }
#endif

}  // namespace

const OpTable* ChooseIsa(std::string_view isa, std::string* error) {
  if (isa.empty()) {
    if (HasAvx512()) return Avx512Ops();
    return HasAvx2() ? Avx2Ops() : PortableOps();
  }
  if (isa == "portable") return PortableOps();
  if (isa != "avx2" && isa != "avx512") {
    *error = "unknown CPU instruction set \"" + std::string(isa) +
             "\": expected \"portable\", \"avx2\", \"avx512\" or \"\" for the best available";
    return nullptr;
  }
  if (isa == "avx2" && HasAvx2()) return Avx2Ops();
  if (isa == "avx512" && HasAvx512()) return Avx512Ops();
  *error = "CPU instruction set \"" + std::string(isa) + "\" is not available on this processor (" +
           (isa == "avx2" ? "needs AVX2 and FMA" : "needs AVX-512 F, BW, VL, DQ, BF16 and VNNI") +
           ")";
  return nullptr;
}

}  // namespace vivarium::kernels
