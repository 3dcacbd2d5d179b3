// Step 0: the definition. One thread a query, three passes over the keys: maximum, sum, output. Scores are computed
// anew in each pass, since there is no room for a row of them.
//
// Defined by the launcher: FA_ELEMENT (Float, Half, Bfloat). Grid: ceil(q_len / 128), query heads, sequences. Block: 128.
#include "dense.cuh"

DEVICE float score(const Problem &p, const Modifiers &modifiers, const Head<FA_ELEMENT> &rows, int head, int query, int key) {
  float sum = 0;
  for (int d = 0; d < p.head_dim; ++d)
    sum += element<FA_ELEMENT>(rows.q.row(query), d) * element<FA_ELEMENT>(rows.k.row(key), d);
  return modifiers.apply(sum, head, query, key);
}

extern "C" __global__ void attention(const Problem p) {
  const Sequence s(p, blockIdx.z);
  const int head = blockIdx.y, query = blockIdx.x * blockDim.x + threadIdx.x;
  if (query >= s.q_len) return;
  const Head<FA_ELEMENT> rows(p, s, head);
  const Modifiers modifiers(p, s);
  const Interval seen = interval_of(p, s, query);
  float top = -INFINITY, sum = 0;
  for (int key = seen.first; key < seen.past; ++key) top = fmaxf(top, score(p, modifiers, rows, head, query, key));
  for (int key = seen.first; key < seen.past; ++key) {
    const float x = score(p, modifiers, rows, head, query, key);
    sum += x == -INFINITY ? 0.0f : exp2_fast((x - top) * LOG2E);
  }
  const float inverse = finish_row(p, s, head, query, top, sum, true);
  FA_ELEMENT::Bits *const out = reinterpret_cast<FA_ELEMENT::Bits *>(const_cast<char *>(rows.out.row(query)));
  for (int c = 0; c < p.v_dim; ++c) {
    float total = 0;
    for (int key = seen.first; key < seen.past; ++key) {
      const float x = score(p, modifiers, rows, head, query, key);
      if (x != -INFINITY) total += exp2_fast((x - top) * LOG2E) * element<FA_ELEMENT>(rows.v.row(key), c);
    }
    out[c] = FA_ELEMENT::store(total * inverse);
  }
}
