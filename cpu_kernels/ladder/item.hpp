// What step 09 lends to step 10: the piece of work that one thread does.
#pragma once
#include "ladder.hpp"
#include "vector.hpp"

namespace {
constexpr int64_t ITEM_ROWS = 4 * NV * W;  // query rows
}

// Queries [row, row + ITEM_ROWS) of a head, as far as there are so many, against all keys they see.
extern "C" void LADDER_SYMBOL(ladder_item_09)(const ladder_problem &p, int64_t h, int64_t row);
