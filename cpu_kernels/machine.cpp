// What this build and this machine offer.
#include <omp.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#endif

#include "fastattention.h"
#include "kernels.hpp"
#include "plan.hpp"

namespace fa {
namespace {

#if defined(FA_HAVE_AVX2)
// Clang before 15 does not know the name that GCC's builtin has for it. That the system keeps the registers
// is asked with AVX2.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}
#endif

// From so many query rows of a KV head on tiles decode a cache faster: of bfloat16 than dot products of
// float32, where up to four rows share each key and value once it is widened, of int8 than those of bytes.
constexpr int64_t TILED_ROWS = 5;

}  // namespace

// Linux hands out the tile registers (8 KiB to save at each switch of a thread) only to processes that ask.
// What is granted holds for every thread, and for children.
bool has_amx() {
#if defined(__linux__) && defined(__x86_64__)
  static const bool granted = [] {
    constexpr unsigned TILES = 1u << 24, BF16 = 1u << 22, INT8 = 1u << 25, ALL = TILES | BF16 | INT8;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL) return false;
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

const Kernels *kernels_of(int isa) {
  switch (isa) {
    case FA_ISA_BASELINE: return &kernels_baseline;
#if defined(FA_HAVE_AVX2)
    case FA_ISA_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() ? &kernels_avx2
                                                                                           : nullptr;
#endif
#if defined(FA_HAVE_AVX512)
    case FA_ISA_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("fma") && has_f16c()
                 ? &kernels_avx512
                 : nullptr;
#endif
#if defined(FA_HAVE_AVX512_VNNI)
    case FA_ISA_AVX512_VNNI:
      return kernels_of(FA_ISA_AVX512) && __builtin_cpu_supports("avx512vnni") ? &kernels_avx512_vnni
                                                                               : nullptr;
#endif
#if defined(FA_HAVE_AVX512_BF16)
    case FA_ISA_AVX512_BF16:
      return kernels_of(FA_ISA_AVX512) && __builtin_cpu_supports("avx512bf16") ? &kernels_avx512_bf16
                                                                               : nullptr;
#endif
#if defined(FA_HAVE_AMX)
    case FA_ISA_AMX:  // which sums its weights by the dot product of bfloat16
      return kernels_of(FA_ISA_AVX512) && __builtin_cpu_supports("avx512bf16") && has_amx() ? &kernels_amx
                                                                                            : nullptr;
#endif
    default: return nullptr;
  }
}

namespace {
// Up to here a set's own decode is asked first; above, prefill by products of pairs pays at once, while
// decode by multiply-adds would go on (see quads.hpp).
constexpr int64_t MOST_DECODE_ROWS = 16;
constexpr int64_t SHORT_PAGE_BYTES = 4096;
}  // namespace

const Kernels *choose_kernels(const fa_problem &p) {
  const Kernels *const asked = kernels_of(p.isa);
  if (!asked || p.isa < FA_ISA_AVX512_VNNI) return asked;
  const Kernels *const wide = kernels_of(FA_ISA_AVX512);
  const int64_t rows = p.q_heads / p.kv_heads * p.q_len;
  if (rows <= MOST_DECODE_ROWS) {
    const bool tiled = p.isa == FA_ISA_AMX && rows >= TILED_ROWS;
    if (p.kv_dtype == FA_BFLOAT16) return tiled ? asked : wide;
    if (p.kv_dtype != FA_INT8) return wide;
    // Few rows wait for memory, and short pages are read faster through several heads at once, which only
    // multiply-adds do (decode_order.hpp).
    const bool in_short_pages =
        p.block_table && p.page_size * p.head_dim < SHORT_PAGE_BYTES && rows < TILED_ROWS;
    const Kernels *const vnni = kernels_of(FA_ISA_AVX512_VNNI);
    return tiled ? asked : vnni && !in_short_pages ? vnni : wide;
  }
  const bool pairs = p.q_dtype == FA_BFLOAT16 && p.kv_dtype == FA_BFLOAT16;
  return pairs && p.isa >= FA_ISA_AVX512_BF16 ? asked : wide;
}

}  // namespace fa

extern "C" {

int fa_isa_available(int isa) { return fa::kernels_of(isa) != nullptr; }

// Choice by speed: the newest set that is available, but for one. Machines that have a dot product of
// bfloat16 may run it slower than the widening to float32 that it saves. Tiles are taken wherever they are.
int fa_isa_default(void) {
  int isa = FA_ISA_COUNT - 1;
  while (!fa::kernels_of(isa) || (isa == FA_ISA_AVX512_BF16 && !fa_bf16_dot_is_faster())) --isa;
  return isa;
}

const char *fa_isa_name(int isa) {
  switch (isa) {
    case FA_ISA_BASELINE: return "baseline";
    case FA_ISA_AVX2: return "avx2";
    case FA_ISA_AVX512: return "avx512";
    case FA_ISA_AVX512_VNNI: return "avx512_vnni";
    case FA_ISA_AVX512_BF16: return "avx512_bf16";
    case FA_ISA_AMX: return "amx";
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
