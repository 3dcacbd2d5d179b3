/* What this machine can do at best, so that the benchmark can say how near a kernel comes to it.
 *
 * Arithmetic probes run one instruction on independent accumulators held in registers: twice as many as the
 * usual latency (4 cycles) times two ports needs, so that only the ports limit. The time asked for is cut
 * into slices to look at the clock; what is returned is the mean after a warm-up. Figures count a multiply
 * and an add as two operations, as everywhere here.
 *
 * Instructions newer than the baseline sit in functions with a target attribute of their own and are called
 * only after the processor was asked.
 */
#include "fastattention.h"
#include "plan.hpp"

#include <string.h>
#include <time.h>

#include <omp.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Long enough for the clock, short enough to fit between disturbances.
constexpr double kSliceSeconds = 0.004;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Keeps a result alive: the compiler must assume that somebody reads it. Take it of a sum, never of an
// accumulator: an array whose address is known may be stored in every iteration.
template <typename T>
void keep(const T &value) {
  asm volatile("" : : "r"(&value) : "memory");
}

using Loop = void (*)(int64_t iterations);

// Rate of `loop` in 1e9 operations a second over the time given, after a warm-up of a third of it: clocks
// settle at the rate that wide vectors are allowed. It is the mean, not the best moment: a kernel that runs
// for a second cannot have the best millisecond's clock either, and on a shared machine the two differ by a
// third.
double mean_rate(Loop loop, double ops_per_iteration, double seconds) {
  int64_t iterations = 1024;
  double slice = 0;
  while (true) {
    const double start = now();
    loop(iterations);
    slice = now() - start;
    if (slice > kSliceSeconds / 4) break;
    iterations *= 2;
  }
  iterations = int64_t(double(iterations) * kSliceSeconds / slice) + 1;
  const double begin = now();
  double counted = 0, total = 0;
  for (double start = begin; start - begin < seconds || total == 0;) {
    loop(iterations);
    const double end = now();
    if (start - begin >= seconds / 3) {
      counted += double(iterations);
      total += end - start;
    }
    start = end;
  }
  return ops_per_iteration * counted / total * 1e-9;
}

/* The float probes iterate x <- a - x * x (or its negative). For a = 1.5 to 1.9 the map is chaotic and stays
 * within [-2, 2]: operands keep changing as real ones do, and nothing overflows, settles or becomes denormal.
 */
constexpr float kMapStart = 0.37f;
constexpr float kMapStep = 0.011f;
constexpr float kMapConstant = 1.79f;

typedef float float4 __attribute__((vector_size(16)));

constexpr int kBaselineChains = 14;  // 16 registers: 14 chains, the constant, one scratch

void fma_baseline(int64_t iterations) {
  float4 x[kBaselineChains];
  const float4 a = {kMapConstant, kMapConstant, kMapConstant, kMapConstant};
#pragma GCC unroll 32
  for (int c = 0; c < kBaselineChains; ++c) {
    const float s = kMapStart + kMapStep * float(c);
    x[c] = float4{s, -s, s * s, 1 - s};
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kBaselineChains; ++c) x[c] = x[c] * x[c] - a;  // in place: no register moves
  }
  float4 sum = x[0];
#pragma GCC unroll 32
  for (int c = 1; c < kBaselineChains; ++c) sum += x[c];
  keep(sum);
}

#if defined(__x86_64__)

constexpr int kAvx2Chains = 14;
constexpr int kAvx512Chains = 20;  // of 32 registers

__attribute__((target("avx2,fma"))) void fma_avx2(int64_t iterations) {
  __m256 x[kAvx2Chains];
  const __m256 a = _mm256_set1_ps(kMapConstant);
  const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
#pragma GCC unroll 32
  for (int c = 0; c < kAvx2Chains; ++c) {
    x[c] = _mm256_add_ps(_mm256_set1_ps(kMapStart + kMapStep * float(c)),
                         _mm256_mul_ps(lane, _mm256_set1_ps(0.09f)));
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kAvx2Chains; ++c) x[c] = _mm256_fnmadd_ps(x[c], x[c], a);
  }
  __m256 sum = x[0];
#pragma GCC unroll 32
  for (int c = 1; c < kAvx2Chains; ++c) sum = _mm256_add_ps(sum, x[c]);
  keep(sum);
}

__attribute__((target("avx512f"))) void fma_avx512(int64_t iterations) {
  __m512 x[kAvx512Chains];
  const __m512 a = _mm512_set1_ps(kMapConstant);
  const __m512 lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 32
  for (int c = 0; c < kAvx512Chains; ++c) {
    x[c] = _mm512_add_ps(_mm512_set1_ps(kMapStart + kMapStep * float(c)),
                         _mm512_mul_ps(lane, _mm512_set1_ps(0.05f)));
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kAvx512Chains; ++c) x[c] = _mm512_fnmadd_ps(x[c], x[c], a);
  }
  __m512 sum = x[0];
#pragma GCC unroll 32
  for (int c = 1; c < kAvx512Chains; ++c) sum = _mm512_add_ps(sum, x[c]);
  keep(sum);
}

/* A dot accumulates, so each step with `a` is followed by one with -a. In round-to-nearest (x + d) - d
 * repeats itself from the second time on (Knuth, TAOCP 2, 4.2.2), so the accumulators stay where they are. */
__attribute__((target("avx512f,avx512bf16"))) void dot_bf16(int64_t iterations) {
  __m512 x[kAvx512Chains];
  uint16_t bits[3][32];
  for (int i = 0; i < 32; ++i) {
    bits[0][i] = uint16_t(0x3f80 + i);           // 1 to 1.25
    bits[1][i] = uint16_t(bits[0][i] | 0x8000);  // its negative
    bits[2][i] = uint16_t(0x3f00 + 3 * i);       // 0.5 to 1
  }
  __m512i raw[3];
  for (int r = 0; r < 3; ++r) raw[r] = _mm512_loadu_si512(bits[r]);
  const __m512bh plus = (__m512bh)raw[0], minus = (__m512bh)raw[1], b = (__m512bh)raw[2];
#pragma GCC unroll 32
  for (int c = 0; c < kAvx512Chains; ++c) x[c] = _mm512_set1_ps(kMapStart + kMapStep * float(c));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kAvx512Chains; ++c) x[c] = _mm512_dpbf16_ps(x[c], plus, b);
#pragma GCC unroll 32
    for (int c = 0; c < kAvx512Chains; ++c) x[c] = _mm512_dpbf16_ps(x[c], minus, b);
  }
  __m512 sum = x[0];
#pragma GCC unroll 32
  for (int c = 1; c < kAvx512Chains; ++c) sum = _mm512_add_ps(sum, x[c]);
  keep(sum);
}

/* Integers wrap, so nothing need be undone. Assembly, because GCC 12 copies the accumulators of the intrinsic
 * to and fro, which costs a third of the rate and more. */
__attribute__((target("avx512f,avx512vnni"))) void dot_int8(int64_t iterations) {
  __m512i x[kAvx512Chains];
  uint8_t bytes[2][64];
  for (int i = 0; i < 64; ++i) {
    bytes[0][i] = uint8_t(3 + 37 * i);
    bytes[1][i] = uint8_t(11 + 59 * i);
  }
  const __m512i a = _mm512_loadu_si512(bytes[0]), b = _mm512_loadu_si512(bytes[1]);
#pragma GCC unroll 32
  for (int c = 0; c < kAvx512Chains; ++c) x[c] = _mm512_set1_epi32(c);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int c = 0; c < kAvx512Chains; ++c) asm("vpdpbusd %2, %1, %0" : "+v"(x[c]) : "v"(a), "v"(b));
  }
  __m512i sum = x[0];
#pragma GCC unroll 32
  for (int c = 1; c < kAvx512Chains; ++c) sum = _mm512_add_epi32(sum, x[c]);
  keep(sum);
}

/* Tiles of 16 rows of 64 bytes; 4 accumulate the products of 2 + 2, which hides the latency of 52 cycles
 * behind one product every 16. Neighbouring values of the bfloat16 operands differ in sign, so sums stay
 * small. */
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <bool Int8>
__attribute__((target("amx-tile,amx-bf16,amx-int8"))) void tiles(int64_t iterations) {
  const TileConfig config;
  _tile_loadconfig(&config);
  alignas(64) uint16_t ones[512];
  alignas(64) uint16_t others[512];
  for (int i = 0; i < 512; ++i) {
    ones[i] = uint16_t(Int8 ? 0x0301 + 37 * i : 0x3f80 + i % 32);
    others[i] = uint16_t(Int8 ? 0x0b05 + 59 * i : (0x3f00 + 3 * (i % 32)) | i % 2 << 15);
  }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, others, 64);
  _tile_loadd(7, others, 64);
  for (int64_t i = 0; i < iterations; ++i) {
    if (Int8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) float sum[256];
  _tile_stored(0, sum, 64);
  keep(sum);
  _tile_release();
}

#endif  // __x86_64__

/* A read touches each cache line by whole-vector loads in `Streams` places at once: hardware prefetchers
 * follow each place by itself, so several keep more lines in flight than one. `ahead` bytes further on a line
 * is prefetched by software (0: not). Which combination is best differs by machine, so the caller tries them
 * all, and then keeps to the best. */
typedef uint64_t word2 __attribute__((vector_size(16), aligned(16)));
constexpr int64_t kLine = 64;

template <int Streams>
void read_streams(const char *data, int64_t bytes, int64_t ahead) {
  const int64_t stream_bytes = bytes / Streams / kLine * kLine;
  word2 sum[4] = {};
  for (int64_t i = 0; i < stream_bytes; i += kLine) {
#pragma GCC unroll 8
    for (int s = 0; s < Streams; ++s) {
      const char *line = data + s * stream_bytes + i;
      if (ahead)
        __builtin_prefetch(line + ahead, 0, 2);  // running past the end is harmless: a hint never faults
      const word2 *words = reinterpret_cast<const word2 *>(line);
      for (int w = 0; w < 4; ++w) sum[w] += words[w];
    }
  }
  for (int w = 0; w < 4; ++w) keep(sum[w]);
}

using Reader = void (*)(const char *data, int64_t bytes, int64_t ahead);

constexpr Reader kReaders[] = {read_streams<1>, read_streams<4>, read_streams<8>};
constexpr int64_t kDistances[] = {0, 512, 2048};
constexpr int kReaderCount = sizeof kReaders / sizeof *kReaders;
static_assert(FA_READ_WAYS == kReaderCount * (sizeof kDistances / sizeof *kDistances), "one way a pair");

// One pass of the whole team over the buffer, in seconds.
double read_once(Reader reader, const char *data, int64_t slice, int64_t ahead, int num_threads) {
  double start = 0, end = 0;
#pragma omp parallel num_threads(num_threads)
  {
    const int t = omp_get_thread_num();
#pragma omp barrier
#pragma omp master
    start = now();
#pragma omp barrier
    reader(data + t * slice, slice, ahead);
#pragma omp barrier
#pragma omp master
    end = now();
  }
  return end - start;
}

}  // namespace

extern "C" double fa_probe_fma_gflops(int isa, double seconds) {
#if defined(__x86_64__)
  if (isa >= FA_ISA_AVX512) {
    return __builtin_cpu_supports("avx512f") ? mean_rate(fma_avx512, kAvx512Chains * 16 * 2, seconds) : 0;
  }
  if (isa == FA_ISA_AVX2) {
    const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has ? mean_rate(fma_avx2, kAvx2Chains * 8 * 2, seconds) : 0;
  }
#endif
  return isa == FA_ISA_BASELINE ? mean_rate(fma_baseline, kBaselineChains * 4 * 2, seconds) : 0;
}

extern "C" double fa_probe_bf16_dot_gflops(double seconds) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16")) {
    return mean_rate(dot_bf16, 2 * kAvx512Chains * 32 * 2, seconds);
  }
#endif
  (void)seconds;
  return 0;
}

extern "C" double fa_probe_int8_dot_gops(double seconds) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
    return mean_rate(dot_int8, kAvx512Chains * 64 * 2, seconds);
  }
#endif
  (void)seconds;
  return 0;
}

extern "C" double fa_probe_read_gbps(const void *buffer, int64_t bytes, int num_threads, int way,
                                     int repeats) {
  if (way < 0 || way >= FA_READ_WAYS || repeats < 1) return 0;
  const Reader reader = kReaders[way % kReaderCount];
  const int64_t ahead = kDistances[way / kReaderCount];
  const int64_t skip = int64_t(-reinterpret_cast<intptr_t>(buffer) & (kLine - 1));  // to the first whole line
  const char *data = static_cast<const char *>(buffer) + skip;
  const int64_t unit = 8 * kLine;  // every reader covers a slice of whole units to the last byte
  const int64_t slice = (bytes - skip) / num_threads / unit * unit;
  if (slice <= 0) return 0;
  double seconds = 0;
  for (int r = 0; r < repeats; ++r) seconds += read_once(reader, data, slice, ahead, num_threads);
  return double(slice) * num_threads * repeats / seconds * 1e-9;
}

// Taken in turns, so that a clock that changes meanwhile changes both; the best of each counts.
extern "C" int fa_bf16_dot_is_faster(void) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16")) return 0;
  static const bool faster = [] {
    constexpr int64_t TURNS = 5, ITERATIONS = 4000;  // some tens of microseconds each
    double fma = 1e9, dot = 1e9;
    for (int turn = 0; turn < TURNS; ++turn) {
      const double start = now();
      fma_avx512(2 * ITERATIONS);
      const double middle = now();
      dot_bf16(ITERATIONS);  // as many instructions, of twice the products
      const double end = now();
      fma = middle - start < fma ? middle - start : fma;
      dot = end - middle < dot ? end - middle : dot;
    }
    return 2 * fma > 1.2 * dot;
  }();
  return faster;
#else
  return 0;
#endif
}

extern "C" double fa_probe_amx_bf16_gflops(double seconds) {
#if defined(__x86_64__)
  if (fa::has_amx()) return mean_rate(tiles<false>, 4 * 16 * 16 * 32 * 2, seconds);
#endif
  (void)seconds;
  return 0;
}

extern "C" double fa_probe_amx_int8_gops(double seconds) {
#if defined(__x86_64__)
  if (fa::has_amx()) return mean_rate(tiles<true>, 4 * 16 * 16 * 64 * 2, seconds);
#endif
  (void)seconds;
  return 0;
}
