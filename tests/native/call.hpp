// A call of fa_attention made from bytes, and checked against two nested loops in double precision.
//
// The bytes choose sizes, types, layouts and options; each array is as large as it must be and not an element
// larger, so that AddressSanitizer and valgrind see a read or a write beyond it. The same bytes make the same
// call.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "fastattention.h"

namespace calls {

// What the bytes say; when they have run out, a generator that they have seeded goes on.
class Bytes {
 public:
  Bytes(const uint8_t *data, size_t size) : at_(data), end_(data + size) {
    for (size_t i = 0; i < size; ++i) state_ = (state_ ^ data[i]) * 0x100000001b3u;
  }
  // An integer in [low, high].
  int64_t in(int64_t low, int64_t high) {
    const uint64_t more = at_ < end_ ? *at_++ : random() >> 56;
    const uint64_t wide = high - low > 255 ? more << 8 | (at_ < end_ ? *at_++ : random() >> 56) : more;
    return low + static_cast<int64_t>(wide % static_cast<uint64_t>(high - low + 1));
  }
  bool yes(int64_t one_in = 2) { return in(1, one_in) == 1; }
  // Often small, sometimes up to `high`.
  int64_t size(int64_t low, int64_t high) {
    switch (in(0, 3)) {
      case 0: return in(low, std::min<int64_t>(high, low + 3));
      case 1: return in(low, std::min<int64_t>(high, 33));
      default: return in(low, high);
    }
  }
  // A number of some size between -1 and 1, from the generator alone: values are no matter of coverage.
  double value() { return static_cast<double>(static_cast<int64_t>(random())) * 0x1p-63; }

 private:
  uint64_t random() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1dull;
  }
  const uint8_t *at_, *end_;
  uint64_t state_ = 0xcbf29ce484222325u;
};

// float16, of which not every compiler has a type.
inline double of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                     : std::ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}
inline uint16_t to_half(double x) {  // cut off: any number near x will do
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7e00;
  int exponent = 0;
  const double fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  if (exponent > 16) return sign | 0x7c00;
  if (exponent < -13)
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::ldexp(std::fabs(x), 24)));
  return static_cast<uint16_t>(sign | ((exponent + 14) << 10) | (static_cast<int>(fraction * 2048) - 1024));
}

// Elements of some type in memory of exactly their size, read and written as doubles.
class Array {
 public:
  Array() = default;
  Array(int dtype, int64_t count)
      : dtype_(dtype), memory_(std::malloc(std::max<size_t>(1, bytes(dtype, count)))) {
    if (!memory_) std::abort();
  }
  Array(Array &&other) noexcept { *this = std::move(other); }
  Array &operator=(Array &&other) noexcept {
    std::swap(dtype_, other.dtype_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Array() { std::free(memory_); }
  void *data() const { return memory_; }
  double get(int64_t i) const {
    switch (dtype_) {
      case FA_FLOAT32: return static_cast<float *>(memory_)[i];
      case FA_FLOAT16: return of_half(static_cast<uint16_t *>(memory_)[i]);
      case FA_BFLOAT16: {
        const uint32_t bits = static_cast<uint32_t>(static_cast<uint16_t *>(memory_)[i]) << 16;
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return x;
      }
      default: return static_cast<int8_t *>(memory_)[i];
    }
  }
  void set(int64_t i, double x) {
    switch (dtype_) {
      case FA_FLOAT32: static_cast<float *>(memory_)[i] = static_cast<float>(x); break;
      case FA_FLOAT16: static_cast<uint16_t *>(memory_)[i] = to_half(x); break;
      case FA_BFLOAT16: {
        const float y = static_cast<float>(x);
        uint32_t bits;
        std::memcpy(&bits, &y, sizeof bits);
        static_cast<uint16_t *>(memory_)[i] = static_cast<uint16_t>(bits >> 16);
        break;
      }
      default: static_cast<int8_t *>(memory_)[i] = static_cast<int8_t>(std::lround(127 * x)); break;
    }
  }

 private:
  static size_t bytes(int dtype, int64_t count) {
    const size_t width = dtype == FA_FLOAT32 ? 4 : dtype == FA_INT8 ? 1 : 2;
    return width * static_cast<size_t>(count);
  }
  int dtype_ = FA_FLOAT32;
  void *memory_ = nullptr;
};

// Strides (batch, head, row) of an array whose rows have `width` elements, and how many elements it spans.
struct Layout {
  int64_t strides[3], span;
  Layout(Bytes &bytes, int64_t batch, int64_t heads, int64_t rows, int64_t width) {
    const int64_t row = width + (bytes.yes(4) ? bytes.in(1, 5) : 0);
    if (bytes.yes()) {  // heads of a row side by side
      strides[1] = row;
      strides[2] = row * heads;
      strides[0] = strides[2] * rows;
    } else {
      strides[2] = row;
      strides[1] = row * rows + (bytes.yes(4) ? bytes.in(1, 3) : 0);
      strides[0] = strides[1] * heads;
    }
    const bool empty = !batch || !heads || !rows || !width;
    span = empty ? 0 : (batch - 1) * strides[0] + (heads - 1) * strides[1] + (rows - 1) * strides[2] + width;
  }
  int64_t at(int64_t b, int64_t h, int64_t i) const {
    return b * strides[0] + h * strides[1] + i * strides[2];
  }
};

constexpr double POISON = 7e4;  // of padding and of what lies behind a sequence's keys: infinite in float16

// A call, with its memory.
class Call {
 public:
  Call(const uint8_t *data, size_t size) : bytes_(data, size) {
    choose_sizes();
    make_arrays();
    choose_options();
  }
  void set_threads(int count) { p_.num_threads = count; }
  int run() const { return fa_attention(&p_); }

  // Empty where all is right; else what is not.
  // Compares at most about `most_rows` rows, some every so many, beginning with one of the first.
  std::string check(int64_t most_rows) {
    double worst = 0;
    int64_t rows = 0;
    for (int64_t b = 0; b < p_.batch; ++b) rows += p_.q_heads * q_rows(b);
    const int64_t step = std::max<int64_t>(1, rows / most_rows);
    int64_t left = bytes_.in(0, step - 1);  // rows to the next that is compared
    for (int64_t b = 0; b < p_.batch; ++b)
      for (int64_t h = 0; h < p_.q_heads; ++h)
        for (int64_t i = 0; i < q_rows(b); ++i) {
          if (left--) continue;
          left = step - 1;
          const std::string wrong = check_row(b, h, i, worst);
          if (!wrong.empty()) return wrong + "\n" + text();
        }
    return {};
  }

  std::string text() const {
    char line[600];
    std::snprintf(line, sizeof line,
                  "B %lld, Hq %lld, Hkv %lld, Sq %lld, Sk %lld, D %lld, Dv %lld, types %d %d, isa %s, "
                  "threads %d, window "
                  "%lld %lld, mask %d, pages of %lld, packed %d, lengths %d, offsets %d, slopes %d, sinks "
                  "%d, softcap %g",
                  ll(p_.batch), ll(p_.q_heads), ll(p_.kv_heads), ll(p_.q_len), ll(p_.k_len), ll(p_.head_dim),
                  ll(p_.v_dim), p_.q_dtype, p_.kv_dtype, fa_isa_name(p_.isa), p_.num_threads,
                  ll(p_.window_left), ll(p_.window_right), p_.mask_kind, ll(p_.page_size),
                  p_.cu_seqlens_q != nullptr, p_.kv_lengths != nullptr, p_.q_offsets != nullptr,
                  p_.alibi_slopes != nullptr, p_.sinks != nullptr, static_cast<double>(p_.softcap));
    return line;
  }

 private:
  static long long ll(int64_t x) { return static_cast<long long>(x); }

  void choose_sizes() {
    p_.batch = bytes_.in(1, 3);
    p_.kv_heads = bytes_.in(1, 3);
    p_.q_heads = p_.kv_heads * bytes_.size(1, 5);
    p_.head_dim = bytes_.size(1, 256);
    p_.v_dim = bytes_.yes() ? p_.head_dim : bytes_.size(1, 256);
    // Few rows of many elements or many of few: filling arrays would be most of the work, and keys too few.
    const int64_t row = p_.batch * p_.q_heads * (p_.head_dim + p_.v_dim);
    p_.q_len = bytes_.size(0, std::clamp<int64_t>(10'000 / row, 3, 150));
    const int64_t pairs = 200'000 / (row * std::max<int64_t>(1, p_.q_len));
    p_.k_len = bytes_.size(0, std::clamp<int64_t>(pairs, 3, 700));
    p_.q_dtype = static_cast<int32_t>(bytes_.in(FA_FLOAT32, FA_BFLOAT16));
    const int64_t kept = bytes_.in(0, 3);
    p_.kv_dtype = kept == 0 ? FA_INT8
                  : kept == 1 && p_.q_dtype == FA_FLOAT32
                      ? static_cast<int32_t>(bytes_.in(FA_FLOAT16, FA_BFLOAT16))
                      : p_.q_dtype;
    switch (bytes_.in(0, 4)) {
      case 0: packed_ = p_.kv_dtype != FA_INT8; break;
      case 1: p_.page_size = bytes_.size(1, 70); break;
      default: break;
    }
    p_.num_threads = static_cast<int32_t>(bytes_.in(1, 4));
    p_.isa = static_cast<int32_t>(bytes_.in(0, FA_ISA_COUNT - 1));
    while (!fa_isa_available(p_.isa)) --p_.isa;
  }

  // Sequences of a packed batch are of all lengths up to the longest, which is q_len or k_len.
  std::vector<int64_t> starts(int64_t longest) {
    std::vector<int64_t> at = {0};
    const int64_t which = bytes_.in(0, p_.batch - 1);
    for (int64_t b = 0; b < p_.batch; ++b)
      at.push_back(at.back() + (b == which ? longest : bytes_.in(0, longest)));
    return at;
  }

  void make_arrays() {
    const int64_t pages_each = p_.page_size ? (p_.k_len + p_.page_size - 1) / p_.page_size : 0;
    int64_t q_rows = p_.q_len, k_rows = p_.k_len, q_batch = p_.batch, k_batch = p_.batch;
    if (packed_) {
      cu_q_ = starts(p_.q_len);
      cu_k_ = starts(p_.k_len);
      p_.cu_seqlens_q = cu_q_.data();
      p_.cu_seqlens_k = cu_k_.data();
      q_batch = k_batch = 1;
      q_rows = cu_q_.back();
      k_rows = cu_k_.back();
    }
    if (p_.page_size) {
      k_batch = p_.batch * pages_each + 2;
      k_rows = p_.page_size;
    }
    const Layout q(bytes_, q_batch, p_.q_heads, q_rows, p_.head_dim),
        out(bytes_, q_batch, p_.q_heads, q_rows, p_.v_dim);
    const Layout k(bytes_, k_batch, p_.kv_heads, k_rows, p_.head_dim),
        v(bytes_, k_batch, p_.kv_heads, k_rows, p_.v_dim);
    const Layout lse(bytes_, q_batch, p_.q_heads, q_rows, 1);
    const Layout ks(bytes_, k_batch, p_.kv_heads, k_rows, 1), vs(bytes_, k_batch, p_.kv_heads, k_rows, 1);
    q_ = filled(p_.q_dtype, q.span, bytes_.yes(8) ? 20.0 : 1.0);
    k_ = filled(p_.kv_dtype, k.span, 1.0);
    v_ = filled(p_.kv_dtype, v.span, 1.0);
    out_ = filled(p_.q_dtype, out.span, std::numeric_limits<double>::quiet_NaN());
    p_.q = q_.data();
    p_.k = k_.data();
    p_.v = v_.data();
    p_.out = out_.data();
    std::copy_n(q.strides, 3, p_.q_strides);
    std::copy_n(k.strides, 3, p_.k_strides);
    std::copy_n(v.strides, 3, p_.v_strides);
    std::copy_n(out.strides, 3, p_.out_strides);
    if (bytes_.yes()) {
      lse_ = filled(FA_FLOAT32, lse.span, std::numeric_limits<double>::quiet_NaN());
      p_.lse = static_cast<float *>(lse_.data());
      std::copy_n(lse.strides, 3, p_.lse_strides);
    }
    if (p_.kv_dtype == FA_INT8) {
      k_scales_ = Array(FA_FLOAT32, ks.span);
      v_scales_ = Array(FA_FLOAT32, vs.span);
      for (int64_t i = 0; i < ks.span; ++i) k_scales_.set(i, 0.02 * std::fabs(bytes_.value()));
      for (int64_t i = 0; i < vs.span; ++i) v_scales_.set(i, 0.02 * std::fabs(bytes_.value()));
      p_.k_scales = static_cast<float *>(k_scales_.data());
      p_.v_scales = static_cast<float *>(v_scales_.data());
      std::copy_n(ks.strides, 3, p_.k_scale_strides);
      std::copy_n(vs.strides, 3, p_.v_scale_strides);
    }
    if (packed_)
      p_.q_strides[0] = p_.k_strides[0] = p_.v_strides[0] = p_.out_strides[0] = p_.lse_strides[0] = 0;
    if (p_.page_size) {
      std::vector<int32_t> free(static_cast<size_t>(k_batch));
      for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int32_t>(i);
      for (size_t i = free.size(); i > 1; --i)
        std::swap(free[i - 1], free[static_cast<size_t>(bytes_.in(0, static_cast<int64_t>(i) - 1))]);
      table_.assign(free.begin(), free.begin() + static_cast<std::ptrdiff_t>(p_.batch * pages_each));
      p_.block_table = table_.data();
      p_.block_table_stride = pages_each;
    }
  }

  Array filled(int dtype, int64_t count, double size) {
    Array array(dtype, count);
    for (int64_t i = 0; i < count; ++i)
      array.set(i, dtype == FA_INT8 ? bytes_.value() : size * bytes_.value());
    return array;
  }

  void choose_options() {
    p_.scale =
        static_cast<float>(bytes_.yes(4) ? bytes_.value() : 1 / std::sqrt(static_cast<double>(p_.head_dim)));
    p_.window_left = p_.window_right = -1;
    switch (bytes_.in(0, 4)) {
      case 0: p_.window_right = 0; break;
      case 1:
        p_.window_left = bytes_.size(0, 200), p_.window_right = bytes_.yes() ? 0 : bytes_.size(0, 200);
        break;
      case 2: p_.window_right = bytes_.size(0, 200); break;
      default: break;
    }
    if (p_.page_size || (!packed_ && bytes_.yes(3))) {
      for (int64_t b = 0; b < p_.batch; ++b) lengths_.push_back(bytes_.in(0, p_.k_len));
      p_.kv_lengths = lengths_.data();
    }
    if (!packed_ && bytes_.yes(3)) {
      for (int64_t b = 0; b < p_.batch; ++b) offsets_.push_back(bytes_.in(0, p_.k_len + 9) - 5);
      p_.q_offsets = offsets_.data();
    }
    if (bytes_.yes(4)) {
      for (int64_t h = 0; h < p_.q_heads; ++h) slopes_.push_back(static_cast<float>(0.1 * bytes_.value()));
      p_.alibi_slopes = slopes_.data();
    }
    if (bytes_.yes(4)) {
      for (int64_t h = 0; h < p_.q_heads; ++h) sinks_.push_back(static_cast<float>(3 * bytes_.value()));
      p_.sinks = sinks_.data();
    }
    if (bytes_.yes(4)) p_.softcap = 2.0f;
    if (!packed_ && bytes_.yes(3)) make_mask();
  }

  void make_mask() {
    const bool whole[4] = {bytes_.yes(), bytes_.yes(), bytes_.yes(), bytes_.yes()};
    const int64_t sizes[4] = {p_.batch, p_.q_heads, p_.q_len, p_.k_len};
    int64_t count = 1;
    for (int axis = 3; axis >= 0; --axis) {
      p_.mask_strides[axis] = whole[axis] ? count : 0;
      if (whole[axis]) count *= sizes[axis];
    }
    p_.mask_kind = bytes_.yes() ? FA_MASK_BOOL : FA_MASK_FLOAT32;
    if (p_.mask_kind == FA_MASK_BOOL) {
      mask_ = Array(FA_INT8, count);
      for (int64_t i = 0; i < count; ++i) static_cast<int8_t *>(mask_.data())[i] = bytes_.value() < 0.3;
    } else {
      mask_ = Array(FA_FLOAT32, count);
      for (int64_t i = 0; i < count; ++i) mask_.set(i, bytes_.value() > 0.5 ? -INFINITY : bytes_.value());
    }
    p_.mask = mask_.data();
  }

  int64_t q_rows(int64_t b) const { return packed_ ? cu_q_[size_t(b) + 1] - cu_q_[size_t(b)] : p_.q_len; }
  int64_t k_rows(int64_t b) const {
    return packed_ ? cu_k_[size_t(b) + 1] - cu_k_[size_t(b)] : p_.kv_lengths ? p_.kv_lengths[b] : p_.k_len;
  }
  // Where row i of an array of queries begins.
  int64_t query_at(const int64_t *strides, int64_t b, int64_t h, int64_t i) const {
    return packed_ ? h * strides[1] + (cu_q_[size_t(b)] + i) * strides[2]
                   : b * strides[0] + h * strides[1] + i * strides[2];
  }
  int64_t key_at(const int64_t *strides, int64_t b, int64_t h, int64_t j) const {
    if (packed_) return h * strides[1] + (cu_k_[size_t(b)] + j) * strides[2];
    if (!p_.page_size) return b * strides[0] + h * strides[1] + j * strides[2];
    const int64_t page = table_[static_cast<size_t>(b * p_.block_table_stride + j / p_.page_size)];
    return page * strides[0] + h * strides[1] + j % p_.page_size * strides[2];
  }

  std::string check_row(int64_t b, int64_t h, int64_t i, double &worst) const {
    const int64_t keys = k_rows(b), kv_head = h / (p_.q_heads / p_.kv_heads);
    const int64_t position = (p_.q_offsets ? p_.q_offsets[b] : keys - q_rows(b)) + i;
    const int64_t q_at = query_at(p_.q_strides, b, h, i);
    std::vector<double> scores(static_cast<size_t>(keys), -INFINITY);
    double top = p_.sinks ? p_.sinks[h] : -INFINITY, off = -1, q_largest = 0;
    for (int64_t d = 0; d < p_.head_dim; ++d) q_largest = std::max(q_largest, std::fabs(q_.get(q_at + d)));
    for (int64_t j = 0; j < keys; ++j) {
      if (p_.window_left >= 0 && j < position - p_.window_left) continue;
      if (p_.window_right >= 0 && j > position + p_.window_right) continue;
      const int64_t at = key_at(p_.k_strides, b, kv_head, j);
      const double unit =
          p_.k_scales ? static_cast<double>(p_.k_scales[key_at(p_.k_scale_strides, b, kv_head, j)]) : 1.0;
      double s = 0, size = 0;
      for (int64_t d = 0; d < p_.head_dim; ++d) {
        const double x = unit * k_.get(at + d);
        s += q_.get(q_at + d) * x;
        size += q_largest * std::fabs(x);
      }
      s *= static_cast<double>(p_.scale);
      size *= std::fabs(static_cast<double>(p_.scale));
      if (p_.softcap != 0)
        s = static_cast<double>(p_.softcap) * std::tanh(s / static_cast<double>(p_.softcap));
      if (p_.alibi_slopes) s += static_cast<double>(p_.alibi_slopes[h]) * static_cast<double>(j - position);
      if (p_.mask) {
        const int64_t m =
            b * p_.mask_strides[0] + h * p_.mask_strides[1] + i * p_.mask_strides[2] + j * p_.mask_strides[3];
        if (p_.mask_kind == FA_MASK_BOOL ? !static_cast<const int8_t *>(p_.mask)[m]
                                         : mask_.get(m) == -INFINITY)
          continue;
        if (p_.mask_kind == FA_MASK_FLOAT32) s += mask_.get(m);
      }
      scores[static_cast<size_t>(j)] = s;
      top = std::max(top, s);
      off = std::max(off, size + std::fabs(s));
    }
    if (off < 0) top = -INFINITY, off = 0;  // it sees no key: a sink alone is no attention
    double sum = p_.sinks && top > -INFINITY ? std::exp(static_cast<double>(p_.sinks[h]) - top) : 0;
    for (double &s : scores) sum += s = top > -INFINITY ? std::exp(s - top) : 0;
    // A coarse bound, of what the kernels' own tests bound finely: garbage is far outside.
    const double score_error = 0x1p-24 * (40 + 4 * std::sqrt(static_cast<double>(p_.head_dim))) * off;
    const double rounding = p_.q_dtype == FA_FLOAT32 ? 1e-5 : p_.q_dtype == FA_FLOAT16 ? 2e-3 : 3e-2;
    const double most = std::min(2.0, rounding + 4 * std::expm1(std::min(score_error, 1.0)));
    if (p_.lse) {
      const double right = sum > 0 ? top + std::log(sum) : -INFINITY,
                   got = static_cast<double>(p_.lse[query_at(p_.lse_strides, b, h, i)]);
      if (!(got == right || std::fabs(got - right) <= most + 1e-5 * std::fabs(right)))
        return "lse of (" + std::to_string(b) + ", " + std::to_string(h) + ", " + std::to_string(i) +
               ") is " + std::to_string(got) + ", expected " + std::to_string(right);
    }
    for (int64_t c = 0; c < p_.v_dim; ++c) {
      double right = 0, size = 0;
      for (int64_t j = 0; j < keys; ++j) {
        const double unit =
            p_.v_scales ? static_cast<double>(p_.v_scales[key_at(p_.v_scale_strides, b, kv_head, j)]) : 1.0;
        const double x = unit * v_.get(key_at(p_.v_strides, b, kv_head, j) + c);
        if (sum > 0) right += scores[static_cast<size_t>(j)] / sum * x;
        size = std::max(size, std::fabs(x));
      }
      const double got = out_.get(query_at(p_.out_strides, b, h, i) + c), error = std::fabs(got - right);
      worst = std::max(worst, error);
      if (!(error <= most * (size + std::fabs(right)) + 1e-7))
        return "out of (" + std::to_string(b) + ", " + std::to_string(h) + ", " + std::to_string(i) + ", " +
               std::to_string(c) + ") is " + std::to_string(got) + ", expected " + std::to_string(right);
    }
    return {};
  }

  Bytes bytes_;
  fa_problem p_ = {};
  bool packed_ = false;
  Array q_, k_, v_, out_, lse_, k_scales_, v_scales_, mask_;
  std::vector<int64_t> cu_q_, cu_k_, lengths_, offsets_;
  std::vector<int32_t> table_;
  std::vector<float> slopes_, sinks_;
};

// Makes the call that the bytes describe; ends the process where something is wrong. `threads`: instead of
// those that the bytes choose. `most_rows`: how many rows of the result are compared.
inline void make(const uint8_t *data, size_t size, int threads = 0, int64_t most_rows = INT64_MAX) {
  Call call(data, size);
  if (threads) call.set_threads(threads);
  const int status = call.run();
  const std::string wrong =
      status == FA_OK ? call.check(most_rows) : "status " + std::to_string(status) + "\n" + call.text();
  if (wrong.empty()) return;
  std::fprintf(stderr, "%s\n", wrong.c_str());
  std::abort();
}

}  // namespace calls
