// Rows of K and V as the kernels read them: of which type, at which place, times which scale.
// Mirrors reference/quantize.py (a row is its scale times its integers) and reference/paged.py.
#pragma once
#include <type_traits>

#include "isa/simd.hpp"
#include "paged.hpp"

namespace FA_NAMESPACE {
namespace {

struct KvSource {
  KvRows rows, scales;  // scales only of int8 rows
};

template <class T>
struct KvType {
  using Is = T;
};

// Calls visit(KvType<T>) with the type in which k and v are stored.
template <class Visit>
inline void with_kv_type(const fa_problem &p, Visit visit) {
  switch (p.kv_dtype) {
    case FA_FLOAT32: return visit(KvType<float>{});
    case FA_FLOAT16: return visit(KvType<half>{});
    case FA_BFLOAT16: return visit(KvType<bfloat>{});
    default: return visit(KvType<int8_t>{});
  }
}

template <class T>
constexpr bool HAS_SCALES = std::is_same<T, int8_t>::value;

template <class T>
inline F scaled(F value, F scale) {
  return HAS_SCALES<T> ? mul(value, scale) : value;
}

// Calls visit(j, row, scale) for the rows key + j, j < n, in order; the scale counts for int8 only.
template <class T, class Visit>
inline void each_row(const KvSource &src, int64_t key, int64_t n, Visit visit) {
  for (int64_t j = 0; j < n;) {
    const int64_t run = src.rows.run(key + j, n - j);
    const char *row = src.rows.at(key + j);
    const char *scale = HAS_SCALES<T> ? src.scales.at(key + j) : nullptr;
    for (const int64_t end = j + run; j < end; ++j, row += src.rows.row_bytes) {
      F factor = zero();
      if constexpr (HAS_SCALES<T>) {
        factor = set1(*reinterpret_cast<const float *>(scale));
        scale += src.scales.row_bytes;
      }
      visit(j, reinterpret_cast<const T *>(row), factor);
    }
  }
}

// The scales of n keys one after the other, and zeros up to a whole vector.
inline void copy_scales(const KvRows &scales, int64_t key, int64_t n, float *dst) {
  for (int64_t j = 0; j < n;) {
    const int64_t run = scales.run(key + j, n - j);
    const char *at = scales.at(key + j);
    if (scales.row_bytes == sizeof(float)) {
      std::memcpy(dst + j, at, static_cast<size_t>(run) * sizeof(float));
      j += run;
      continue;
    }
    for (const int64_t end = j + run; j < end; ++j, at += scales.row_bytes)
      dst[j] = *reinterpret_cast<const float *>(at);
  }
  for (int64_t j = n; j < round_up(n, W); ++j) dst[j] = 0.0f;
}

}  // namespace
}  // namespace FA_NAMESPACE
