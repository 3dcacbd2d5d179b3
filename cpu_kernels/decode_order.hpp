// The order in which a decode item goes through its keys, and what a kernel must offer to be led along it.
//
// Memory delivers what lies one after the other faster than what does not. In a pool of pages (pages, Hkv,
// page_size, D) the rows of one KV head end with its page, after a few KiB; those of the next head follow. So
// an item over pages takes several neighbouring heads at once, and goes block by block: the keys of a block
// (a page, or a few small ones) for its first head, for the next one, ..., then the next block. Each head
// keeps a state of its own, a decoder, and comes out as it would alone: only the order of the reads differs.
//
//   struct Decoder {  // the rows of one KV head
//     using Space = ...;
//     // Space(p, tiles, memory) lays out memory of tiles.item_heads heads, of Space::bytes; a NULL memory is
//     // only counted.
//
//     Decoder(const fa_problem &, const Sequence &, const Item &, const Tiles &, const Space &, int64_t h);
//     // The item is of one KV head, the h-th of those led together.
//
//     Keys seen() const;
//     // Keys that some row sees; the same for all heads.
//
//     void run(const Turn &);
//     // Over the keys [turn.key, turn.past), asking for those that come after them.
//
//     void finish();
//     // Write the rows.
//   };
#pragma once
#include <new>

#include "rows.hpp"
#include "tiling.hpp"

namespace FA_NAMESPACE {
namespace {

struct Keys {  // begin <= j < end
  int64_t begin, end;
};

// What a decoder does in one go, and where that stands in the whole.
struct Turn {
  int64_t key, past;  // its keys: of one block, or all where the item has one KV head
  int64_t end;  // of the item's keys
  int64_t block;  // keys of a block
  int64_t head, heads;  // number among the item's KV heads; how many they are

  // The row that is read `rows` rows after row `key` of this turn: of which head (counted from this one), at
  // which key, and how many rows follow it in its turn. No rows: the item ends before.
  struct Place {
    int64_t head, key, rows;
  };
  Place after(int64_t from, int64_t rows) const {
    Place place = {0, from + rows, 0};
    int64_t first = key, last = past;
    while (place.key >= last) {
      const int64_t over = place.key - last;
      if (head + place.head + 1 < heads) {
        ++place.head;
      } else {
        if (last >= end) return place;
        place.head = -head;
        first = last;
        last = minimum(last + block, end);
      }
      place.key = first + over;
    }
    // Behind the item's last row nothing else is read: who asks for rows there asks in vain, in one go.
    const bool is_last = last == end && head + place.head + 1 == heads;
    place.rows = is_last ? INT64_MAX : last - place.key;
    return place;
  }
};

template <class Decoder>
inline size_t decode_heads_bytes(const fa_problem &p, const Tiles &tiles) {
  Arena arena = {nullptr, 0};
  arena.take<Decoder>(tiles.item_heads);
  return arena.used + typename Decoder::Space(p, tiles, nullptr).bytes;
}

template <class Decoder>
inline void decode_heads(const fa_problem &p, const Sequence &seq, const Item &item, const Tiles &tiles,
                         void *workspace) {
  Arena arena = {static_cast<char *>(workspace), 0};
  Decoder *const decoders = arena.take<Decoder>(tiles.item_heads);
  const typename Decoder::Space space(p, tiles, arena.base + arena.used);
  const int64_t heads = item.kv_heads;
  for (int64_t h = 0; h < heads; ++h)
    new (decoders + h) Decoder(p, seq, head_of(p, item, h), tiles, space, h);
  const Keys seen = decoders[0].seen();
  Turn turn = {seen.begin, seen.begin, seen.end, tiles.key_block, 0, heads};
  while (turn.past < seen.end) {
    turn.key = turn.past;
    turn.past = heads == 1 ? seen.end : minimum((turn.key / turn.block + 1) * turn.block, seen.end);
    for (turn.head = 0; turn.head < heads; ++turn.head) decoders[turn.head].run(turn);
  }
  for (int64_t h = 0; h < heads; ++h) decoders[h].finish();
}

}  // namespace
}  // namespace FA_NAMESPACE
