// A token's work on a layer whose keys and values lie in host memory, as one call without Python: the new
// rows go behind the others, then attention. A GPU's driver can make the call in the middle of a stream.
#define FA_NAMESPACE fa_host_step_rows
#include <chrono>
#include <cstring>

#include "common.hpp"
#include "fastattention.h"

namespace FA_NAMESPACE {
namespace {

struct Rows {  // of keys or of values
  const void *from;  // (B, Hkv, S, width)
  const int64_t *from_strides;
  void *to;  // the plane's first row of every sequence and head, plus the rows before the new ones
  const int64_t *to_strides;
  float *scales;  // likewise, or null
  const int64_t *scale_strides;
  int64_t width;
};

template <class From, class To>
void convert(const From *from, To *to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<To>(widen(from[i]));
}
template <class Same>
void convert(const Same *from, Same *to, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(Same));  // a NaN stays the NaN it was
}

template <class From>
int write_row(const From *from, void *to, float *scale, int32_t kept, int64_t n) {
  constexpr int64_t WIDEST = 256;
  switch (kept) {
    case FA_FLOAT32: convert(from, static_cast<float *>(to), n); return FA_OK;
    case FA_FLOAT16: convert(from, static_cast<half *>(to), n); return FA_OK;
    case FA_BFLOAT16: convert(from, static_cast<bfloat *>(to), n); return FA_OK;
    default: break;
  }
  float wide[WIDEST];
  convert(from, wide, n);
  const int64_t shape[4] = {1, 1, 1, n}, strides[3] = {0, 0, 0};
  return fa_quantize(wide, shape, strides, static_cast<int8_t *>(to), scale);
}

template <class From>
int write_rows(const fa_problem &p, const Rows &r) {
  const int64_t kept_size = p.kv_dtype == FA_FLOAT32 ? 4 : p.kv_dtype == FA_INT8 ? 1 : 2;
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      for (int64_t s = 0; s < p.q_len; ++s) {
        const From *const from = static_cast<const From *>(r.from) + b * r.from_strides[0] +
                                 h * r.from_strides[1] + s * r.from_strides[2];
        char *const to = static_cast<char *>(r.to) +
                         (b * r.to_strides[0] + h * r.to_strides[1] + s * r.to_strides[2]) * kept_size;
        float *const scale =
            r.scales ? r.scales + b * r.scale_strides[0] + h * r.scale_strides[1] + s * r.scale_strides[2]
                     : nullptr;
        const int status = write_row(from, to, scale, p.kv_dtype, r.width);
        if (status != FA_OK) return status;
      }
    }
  }
  return FA_OK;
}

int write(const fa_problem &p, const Rows &rows) {
  switch (p.q_dtype) {
    case FA_FLOAT32: return write_rows<float>(p, rows);
    case FA_FLOAT16: return write_rows<half>(p, rows);
    default: return write_rows<bfloat>(p, rows);
  }
}

// The rows from `row` on of a plane, whose elements have a size.
void *from_row(const void *plane, const int64_t *strides, int64_t row, int64_t size) {
  return const_cast<char *>(static_cast<const char *>(plane)) + row * strides[2] * size;
}

int run(const fa_host_step &step) {
  fa_problem p = step.problem;
  const int64_t size = p.kv_dtype == FA_FLOAT32 ? 4 : p.kv_dtype == FA_INT8 ? 1 : 2;
  const int64_t row = step.length - p.q_len;
  const bool scaled = p.k_scales != nullptr;
  const Rows keys = {step.new_k,
                     step.new_k_strides,
                     from_row(p.k, p.k_strides, row, size),
                     p.k_strides,
                     scaled ? static_cast<float *>(from_row(p.k_scales, p.k_scale_strides, row, 4)) : nullptr,
                     p.k_scale_strides,
                     p.head_dim};
  const Rows values = {
      step.new_v,
      step.new_v_strides,
      from_row(p.v, p.v_strides, row, size),
      p.v_strides,
      scaled ? static_cast<float *>(from_row(p.v_scales, p.v_scale_strides, row, 4)) : nullptr,
      p.v_scale_strides,
      p.v_dim};
  int status = write(p, keys);
  if (status == FA_OK) status = write(p, values);
  if (status != FA_OK) return status;
  // The keys that count begin at row `first`: a shorter problem, whose queries stand at its end as before.
  p.k = from_row(p.k, p.k_strides, step.first, size);
  p.v = from_row(p.v, p.v_strides, step.first, size);
  if (scaled) {
    p.k_scales = static_cast<const float *>(from_row(p.k_scales, p.k_scale_strides, step.first, 4));
    p.v_scales = static_cast<const float *>(from_row(p.v_scales, p.v_scale_strides, step.first, 4));
  }
  p.k_len = step.length - step.first;
  return fa_attention(&p);
}

}  // namespace
}  // namespace FA_NAMESPACE

extern "C" void fa_host_step_run(void *argument) {
  fa_host_step &step = *static_cast<fa_host_step *>(argument);
  step.seconds = 0;
  step.status = FA_OK;
  if (step.failed && __atomic_load_n(step.failed, __ATOMIC_ACQUIRE)) return;
  const auto start = std::chrono::steady_clock::now();
  step.status = FA_NAMESPACE::run(step);
  step.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (step.status != FA_OK && step.failed) __atomic_store_n(step.failed, 1, __ATOMIC_RELEASE);
}

extern "C" void *fa_host_step_function(void) { return reinterpret_cast<void *>(&fa_host_step_run); }
