// What this build and this machine offer.
#include <omp.h>
#include <unistd.h>

#include "fastattention.h"
#include "kernels.hpp"
#include "plan.hpp"

namespace fa {

const Kernels *kernels_of(int isa) {
  switch (isa) {
    case FA_ISA_BASELINE: return &kernels_baseline;
#if defined(FA_HAVE_AVX2)
    case FA_ISA_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? &kernels_avx2
                 : nullptr;
#endif
#if defined(FA_HAVE_AVX512)
    case FA_ISA_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? &kernels_avx512
                 : nullptr;
#endif
    default: return nullptr;
  }
}

}  // namespace fa

extern "C" {

int fa_isa_available(int isa) { return fa::kernels_of(isa) != nullptr; }

const char *fa_isa_name(int isa) {
  switch (isa) {
    case FA_ISA_BASELINE: return "baseline";
    case FA_ISA_AVX2: return "avx2";
    case FA_ISA_AVX512: return "avx512";
    default: return "";
  }
}

const char *fa_compiler(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

int fa_max_threads(void) { return omp_get_max_threads(); }

int64_t fa_cache_bytes(int level) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  if (level >= 1 && level <= 3) {
    const long bytes = sysconf(names[level - 1]);
    return bytes > 0 ? bytes : 0;
  }
#endif
  return 0;
}
}
