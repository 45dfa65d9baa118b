// What the threads of one pass share.

#pragma once

#include <algorithm>
#include <vector>

#include "model.h"
#include "products.h"
#include "threads.h"
#include "units.h"

namespace {

// Some rows of a segment, whose queries of one group of heads are answered together.
struct Block {
  int first, rows;  // of the pass
};

// What was worked out before the pass began, and where its operations leave their results.
template <class T>
struct Shared {
  using Element = typename T::Element;

  const Decoder& decoder;
  const Pass pass;
  const int threads;
  std::vector<Work> works;  // one for each operation, in their order
  std::vector<Sight> sights;
  int rows_padded;
  std::vector<float> residual, projected;     // [rows][hidden], [rows][queries, keys, values]
  std::vector<Element> normed, queries, attended, activated, fused;
  std::vector<Block> blocks;
  int widest = 0;        // keys that any row sees
  int longest_tail = 0;  // keys of it that are scattered
  bool attends_by_matrix = false;

  Shared(const Decoder& decoder, const Pass& pass, int threads)
      : decoder(decoder), pass(pass), threads(threads), works(8 * decoder.layer_count + 4),
        sights(see(pass)), rows_padded(padded(pass.rows, kMatrixRows)) {
    const int query_size = decoder.heads * decoder.head_dim;
    const int kv_size = decoder.kv_heads * decoder.head_dim;
    residual.resize(size_t(pass.rows) * decoder.hidden);
    projected.resize(size_t(pass.rows) * (query_size + 2 * kv_size));
    normed.resize(size_t(rows_padded) * decoder.hidden);
    queries.resize(size_t(pass.rows) * query_size);
    attended.resize(size_t(rows_padded) * query_size);
    activated.resize(size_t(rows_padded) * decoder.ffn);
    if (decoder.fusion.packed) fused.resize(size_t(rows_padded) * decoder.fusion.inputs);
    for (const Sight& sight : sights) {
      widest = std::max(widest, sight.count());
      longest_tail = std::max(longest_tail, static_cast<int>(sight.tail.size()));
    }
    const int group = decoder.heads / decoder.kv_heads;
    attends_by_matrix = T::kPerUnit == 2 && matrix_unit_allowed() && group <= kTileUnits &&
                        decoder.head_dim % kTileKeys == 0;
    const int step = std::max(1, kTileUnits / group);
    for (int index = 0, first = 0; index < pass.segment_count; ++index) {
      const int rows = pass.segments[index].rows;
      for (int row = 0; row < rows; row += step)
        blocks.push_back({first + row, std::min(step, rows - row)});
      first += rows;
    }
  }
};

}  // namespace
