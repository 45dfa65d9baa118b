// Passes of a Llama-like decoder on a CPU: every layer in one call, on threads of its own.
//
// Few tokens at a time are bound by reading weights, so weights lie in the order in which they are
// read: panels of 32 output columns, each a run of tiles that the matrix unit (AMX) or the vector
// unit takes as they are. What is computed for a token depends on the tokens that it sees and on
// nothing else: every sum runs over its terms in the same order, however many rows share the pass,
// wherever in the cache a key lies, and whether a token comes alone, in a tree or in a prompt.
// So a text is the same, bit for bit, with or without a tree.
//
// Elements are float or bfloat16; a *unit* is the 32 bits that hold one of the first or two of the
// second, and a multiply-add over units is the same operation for both.

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <new>
#include <type_traits>

#include "model.h"
#include "products.h"
#include "threads.h"
#include "units.h"

namespace {

// Memory of one thread, all taken at the beginning, and the part of a pass that it does.
template <class T>
class Runner {
 public:
  using Element = typename T::Element;

  // Some rows of a segment, whose queries of one group of heads are answered together.
  struct Block {
    int first, rows;  // of the pass
  };

  struct Shared {
    const Decoder& decoder;
    const Pass pass;
    const int threads;
    std::vector<Work> works;  // one for each operation, in their order
    std::vector<Sight> sights;
    int rows_padded;
    std::vector<float> residual, projected;     // [rows][hidden], [rows][queries, keys, values]
    std::vector<Element> normed, queries, attended, activated, fused;
    std::vector<typename Runner::Block> blocks;
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

  explicit Runner(Shared& shared) : s_(shared), d_(shared.decoder), p_(shared.pass) {
    const int queries = std::max(kTileUnits, d_.heads / d_.kv_heads);
    score_stride_ = padded(s_.widest + 2 * kLanes, kTileKeys);
    scores_.resize(size_t(queries) * score_stride_);
    weights_.resize(size_t(queries) * score_stride_);
    late_weights_.resize(size_t(queries) * score_stride_);
    inverse_.resize(queries);
    matrix_queries_.resize(size_t(kTileUnits) * d_.head_dim);
    turned_.resize(d_.head_dim);
    tail_keys_.resize(size_t(padded(s_.longest_tail, kLanes)) * d_.head_dim);
    tail_values_.resize(size_t(padded(s_.longest_tail + T::kPerUnit, kLanes)) * d_.head_dim);
  }

  void run() {
    const bool with_matrix_unit = T::kPerUnit == 2 && matrix_unit_allowed();
    if (with_matrix_unit) take_matrix_unit();
    with_matrix_unit_ = with_matrix_unit;
    read_inputs();
    for (int layer = 0; layer < d_.layer_count; ++layer) run_layer(d_.layers[layer], layer);
    finish();
    if (with_matrix_unit) release_matrix_unit();
  }

 private:
  // Do the next operation of the pass together with the other threads.
  template <class Do>
  void together(int count, const Do& run) {
    s_.works[work_++].take_part(count, s_.threads, run);
  }

  void read_inputs() {
    together(p_.rows, [&](int begin, int end) {
      for (int row = begin; row < end; ++row) read_row(row);
    });
    const size_t hidden = d_.hidden;
    if (d_.fusion.packed)
      linear(s_.fused.data(), d_.fusion, [&](int row, int column, const float* values, int count) {
        std::memcpy(&s_.residual[row * hidden + column], values, sizeof(float) * count);
      });
  }

  // The embedding of a row's token, with its feature behind it where the fusion reads both.
  void read_row(int row) {
    const size_t size = d_.embedding_size;
    const Element* from = static_cast<const Element*>(d_.embedding) + p_.token_ids[row] * size;
    if (!d_.fusion.packed) {
      for (size_t at = 0; at < size; ++at) s_.residual[row * size + at] = T::to(from[at]);
      return;
    }
    Element* to = &s_.fused[size_t(row) * d_.fusion.inputs];
    std::memcpy(to, from, sizeof(Element) * size);
    const float* feature = p_.read_features + size_t(row) * p_.feature_size;
    for (int at = 0; at < p_.feature_size; ++at) to[size + at] = T::from(feature[at]);
  }

  void run_layer(const Layer& layer, int number) {
    normalise(layer.input_norm, nullptr);
    const size_t width = layer.qkv.outputs;
    linear(s_.normed.data(), layer.qkv, [&](int row, int column, const float* values, int count) {
      std::memcpy(&s_.projected[row * width + column], values, sizeof(float) * count);
    });
    place(number);
    attend(number);
    linear(s_.attended.data(), layer.attention_output, add_to_residual());
    normalise(layer.attention_norm, nullptr);
    activate(layer.gate_up);
    linear(s_.activated.data(), layer.down, add_to_residual());
  }

  void finish() {
    normalise(d_.final_norm, p_.features);
    if (!p_.with_logits) return;
    const size_t width = d_.vocabulary;
    linear(s_.normed.data(), d_.head, [&](int row, int column, const float* values, int count) {
      std::memcpy(&p_.logits[row * width + column], values, sizeof(float) * count);
    });
  }

  auto add_to_residual() {
    return [this](int row, int column, const float* values, int count) {
      float* to = &s_.residual[size_t(row) * d_.hidden + column];
      for (int index = 0; index < count; ++index) to[index] += values[index];
    };
  }

  // Root-mean-square norm of every row; `also` gets the result in float where given.
  void normalise(const float* weight, float* also) {
    together(p_.rows, [&](int begin, int end) {
      for (int row = begin; row < end; ++row) normalise_row(row, weight, also);
    });
  }

  void normalise_row(int row, const float* weight, float* also) {
    const float* from = &s_.residual[size_t(row) * d_.hidden];
    __m512 squares = _mm512_setzero_ps();
    for (int at = 0; at < d_.hidden; at += kLanes) {
      const __m512 values = _mm512_loadu_ps(from + at);
      squares = _mm512_fmadd_ps(values, values, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / d_.hidden;
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(mean + d_.norm_epsilon));
    for (int at = 0; at < d_.hidden; at += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(from + at), scale),
                                          _mm512_loadu_ps(weight + at));
      T::store(&s_.normed[size_t(row) * d_.hidden + at], values);
      if (also) _mm512_storeu_ps(also + size_t(row) * d_.hidden + at, values);
    }
  }

  // One product of some rows by one panel or two adjacent ones, to `out_` of [rows][panels * 32].
  void multiply(const Element* a, int row, int rows, const Linear& by, int panel, int panels) {
    const int tiles = by.inputs / (kTileUnits * T::kPerUnit);
    const size_t panel_size = size_t{2} * tiles * kTile;
    const uint32_t* packed = by.packed + panel * panel_size;
    const Element* from = a + size_t(row) * by.inputs;
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
    if constexpr (T::kPerUnit == 2) {
      if (with_matrix_unit_) {
        if (rows > 16) {
          for (int one = 0; one < panels; ++one) {
            multiply_tiles<2, 1>(from, by.inputs, packed + one * panel_size, tiles, tile_out_);
            for (int r = 0; r < rows; ++r)
              std::memcpy(out_ + r * panels * kPanel + one * kPanel, tile_out_ + r * kPanel,
                          sizeof(float) * kPanel);
          }
        } else if (panels == 2) {
          multiply_tiles<1, 2>(from, by.inputs, packed, tiles, out_);
        } else {
          multiply_tiles<1, 1>(from, by.inputs, packed, tiles, out_);
        }
        return;
      }
    }
#endif
    for (int one = 0; one < panels; ++one)
      multiply_some_rows<T>(rows, from, by.inputs, packed + one * panel_size, tiles,
                            out_ + one * kPanel, panels * kPanel);
  }

  // Rows to take at once: equal parts no larger than the unit takes.
  int block_rows() const {
    const int most = with_matrix_unit_ ? kMatrixRows : kVectorRows;
    const int blocks = (p_.rows + most - 1) / most;
    return with_matrix_unit_ ? most : (p_.rows + blocks - 1) / blocks;
  }

  // Every row by a whole weight; `use` gets the products, a stretch of columns of a row at a time.
  template <class Use>
  void linear(const Element* a, const Linear& by, const Use& use) {
    const int panels = padded(by.outputs, kPanel) / kPanel;
    const int step = block_rows();
    together((panels + 1) / 2, [&](int begin, int end) {
      for (int panel = 2 * begin; panel < std::min(2 * end, panels); panel += 2) {
        const int width = std::min(2, panels - panel);
        const int column = panel * kPanel;
        const int count = std::min(width * kPanel, by.outputs - column);
        for (int row = 0; row < p_.rows; row += step) {
          const int rows = std::min(step, p_.rows - row);
          multiply(a, row, rows, by, panel, width);
          for (int r = 0; r < rows; ++r) {
            float* values = out_ + r * width * kPanel;
            if (by.bias)
              for (int index = 0; index < count; ++index) values[index] += by.bias[column + index];
            use(row + r, column, values, count);
          }
        }
      }
    });
  }

  // silu(gate) * up; the panels of the two alternate.
  void activate(const Linear& gate_up) {
    const int step = block_rows();
    together(gate_up.outputs / (2 * kPanel), [&](int begin, int end) {
      for (int pair = begin; pair < end; ++pair)
        for (int row = 0; row < p_.rows; row += step) {
          const int rows = std::min(step, p_.rows - row);
          multiply(s_.normed.data(), row, rows, gate_up, 2 * pair, 2);
          for (int r = 0; r < rows; ++r)
            for (int at = 0; at < kPanel; at += kLanes) {
              const __m512 gate = _mm512_loadu_ps(out_ + r * 2 * kPanel + at);
              const __m512 up = _mm512_loadu_ps(out_ + r * 2 * kPanel + kPanel + at);
              T::store(&s_.activated[size_t(row + r) * d_.ffn + pair * kPanel + at],
                       _mm512_mul_ps(silu(gate), up));
            }
        }
    });
  }

  static __m512 silu(__m512 x) {
    // x / (1 + e^-x), with the exponential of the negative of |x| alone.
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 above = _mm512_mask_mov_ps(one, negative, small);
    return _mm512_div_ps(_mm512_mul_ps(x, above), _mm512_add_ps(one, small));
  }

  // Rotate queries and keys to their positions, and put keys and values into the caches.
  void place(int layer) {
    together(p_.rows, [&](int begin, int end) {
      for (int row = begin; row < end; ++row) place_row(layer, row);
    });
  }

  void place_row(int layer, int row) {
    const int head_dim = d_.head_dim;
    const int query_size = d_.heads * head_dim, kv_size = d_.kv_heads * head_dim;
    const float* from = &s_.projected[size_t(row) * (query_size + 2 * kv_size)];
    Element* queries = &s_.queries[size_t(row) * query_size];
    for (int head = 0; head < d_.heads; ++head)
      turn(row, from + head * head_dim, d_.attention_scale, queries + head * head_dim);
    const Sight& sight = s_.sights[row];
    for (int head = 0; head < d_.kv_heads; ++head) {
      const CacheView<T> cache(d_, *sight.segment, layer, head);
      const float* values = from + query_size + kv_size + head * head_dim;
      turn(row, from + query_size + head * head_dim, 1.0f, turned_.data());
      for (int at = 0; at < head_dim; at += T::kPerUnit)
        std::memcpy(&cache.key(sight.row, at), &turned_[at], 4);
      Element* to = &cache.value(sight.row, 0);
      for (int at = 0; at < head_dim; ++at) to[at * T::kPerUnit] = T::from(values[at]);
    }
  }

  // One head of a row, rotated to the row's position and scaled.
  void turn(int row, const float* head, float scale, Element* to) {
    const int half = d_.head_dim / 2;
    const float* cosines = p_.cosines + size_t(p_.positions[row]) * d_.head_dim;
    const float* sines = p_.sines + size_t(p_.positions[row]) * d_.head_dim;
    for (int at = 0; at < half; ++at) {
      const float left = head[at], right = head[at + half];
      to[at] = T::from((left * cosines[at] - right * sines[at]) * scale);
      to[at + half] = T::from((right * cosines[at + half] + left * sines[at + half]) * scale);
    }
  }

  void attend(int layer) {
    together(static_cast<int>(s_.blocks.size()) * d_.kv_heads, [&](int begin, int end) {
      for (int unit = begin; unit < end; ++unit)
        attend_block(layer, s_.blocks[unit / d_.kv_heads], unit % d_.kv_heads);
    });
  }

  // Queries of a block's rows against one head of keys. The first keys of a row are the matrix unit's,
  // the last ones, which may lie scattered, the vector unit's; how many depends on their number alone.
  void attend_block(int layer, const Block& block, int kv_head) {
    const int group = d_.heads / d_.kv_heads;
    const CacheView<T> cache(d_, *s_.sights[block.first].segment, layer, kv_head);
    int most = 0;
    for (int r = 0; r < block.rows; ++r)
      most = std::max(most, matrix_keys(s_.sights[block.first + r]));
    if (most) score_by_matrix(block, kv_head, cache, most);
    for (int r = 0; r < block.rows; ++r) {
      const Sight& sight = s_.sights[block.first + r];
      gather_tail_keys(sight, cache);
      for (int head = 0; head < group; head += kHeadGroup)
        by_count(std::min(kHeadGroup, group - head), [&](auto heads) {
          score_rest<heads>(block.first + r, kv_head * group + head, r * group + head, cache);
        });
      for (int head = 0; head < group; ++head) soften(r * group + head, sight, most);
    }
    for (int chunk = 0; chunk < d_.head_dim; chunk += kChunk) {
      if (most) mix_by_matrix(cache, most, chunk);
      for (int r = 0; r < block.rows; ++r) {
        gather_tail_values(s_.sights[block.first + r], cache);
        for (int head = 0; head < group; head += kHeadGroup)
          by_count(std::min(kHeadGroup, group - head), [&](auto heads) {
            mix_rest<heads>(block.first + r, kv_head * group + head, r * group + head, chunk, cache);
          });
      }
    }
  }

  template <class Run>
  static void by_count(int count, const Run& run) {
    switch (count) {
      case 1: return run(std::integral_constant<int, 1>());
      case 2: return run(std::integral_constant<int, 2>());
      case 3: return run(std::integral_constant<int, 3>());
      default: return run(std::integral_constant<int, 4>());
    }
  }

  // How many of the keys that a row sees are the matrix unit's: it depends on the number of keys, unless
  // more than `kLateKeys` of them are scattered, which is to say, over so deep a tree.
  int matrix_keys(const Sight& sight) const {
    if (!s_.attends_by_matrix || sight.count() < kLateKeys) return 0;
    return std::min(sight.count() - kLateKeys, sight.lead) / kTileKeys * kTileKeys;
  }

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
  // Scores of the first `most` keys for all queries of a block.
  void score_by_matrix(const Block& block, int kv_head, const CacheView<T>& cache, int most) {
    const int dim = d_.head_dim, group = d_.heads / d_.kv_heads;
    for (int r = 0; r < block.rows; ++r)
      std::memcpy(&matrix_queries_[size_t(r) * group * dim],
                  &s_.queries[(size_t(block.first + r) * d_.heads + kv_head * group) * dim],
                  sizeof(Element) * group * dim);
    for (int key = 0; key < most; key += kTileKeys) {
      _tile_zero(0);
      _tile_zero(1);
      for (int at = 0; at < dim; at += kTileKeys) {
        const Element* keys = cache.keys + size_t(key) * dim + at * kLanes;
        _tile_loadd(4, &matrix_queries_[at], dim * 2);
        _tile_loadd(5, keys, 64);
        _tile_loadd(6, keys + size_t(kLanes) * dim, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
      }
      _tile_stored(0, &scores_[key], score_stride_ * 4);
      _tile_stored(1, &scores_[key + kLanes], score_stride_ * 4);
    }
  }

  // Weighted sums of the first `most` values over some dimensions, to `mixed_`.
  void mix_by_matrix(const CacheView<T>& cache, int most, int chunk) {
    const int dim = d_.head_dim;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const bool whole = dim - chunk > kTileKeys;  // or the first half alone
    for (int key = 0; key < most; key += kTileKeys) {
      const Element* values = cache.values + size_t(key) * dim + 2 * chunk;
      _tile_loadd(4, &weights_[key], score_stride_ * 2);
      _tile_loadd(5, values, dim * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, values + 2 * kLanes, dim * 4);
      _tile_dpbf16ps(1, 4, 6);
      if (!whole) continue;
      _tile_loadd(5, values + 4 * kLanes, dim * 4);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, values + 6 * kLanes, dim * 4);
      _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, mixed_, kChunk * 4);
    _tile_stored(1, mixed_ + kLanes, kChunk * 4);
    _tile_stored(2, mixed_ + 2 * kLanes, kChunk * 4);
    _tile_stored(3, mixed_ + 3 * kLanes, kChunk * 4);
  }
#else
  void score_by_matrix(const Block&, int, const CacheView<T>&, int) {}
  void mix_by_matrix(const CacheView<T>&, int, int) {}
#endif

  // Bring what is seen behind the leading keys together, in blocks as in the cache.
  void gather_tail_keys(const Sight& sight, const CacheView<T>& cache) {
    const int count = static_cast<int>(sight.tail.size()), dim = d_.head_dim;
    for (int index = 0; index < count; ++index)
      for (int at = 0; at < dim; at += T::kPerUnit)
        std::memcpy(&tail_keys_[CacheView<T>::key_offset(index, at, dim)],
                    &cache.key(sight.tail[index], at), 4);
  }

  // The same for values; they begin with the leading ones that do not fill a group.
  void gather_tail_values(const Sight& sight, const CacheView<T>& cache) {
    if (sight.tail.empty()) return;
    const int over = sight.lead % T::kPerUnit, dim = d_.head_dim;
    const int count = static_cast<int>(sight.tail.size()) + over;
    for (int index = 0; index < count; ++index) {
      const int row = index < over ? sight.lead - over + index : sight.tail[index - over];
      for (int at = 0; at < dim; ++at)
        tail_values_[CacheView<T>::value_offset(index, at, dim)] = cache.value(row, at);
    }
  }

  // Scores of the keys that are not the matrix unit's, for some heads of a row.
  template <int kHeads>
  void score_rest(int row, int head, int query, const CacheView<T>& cache) {
    const int dim = d_.head_dim;
    const Sight& sight = s_.sights[row];
    const Element* queries = &s_.queries[(size_t(row) * d_.heads + head) * dim];
    float* scores = &scores_[size_t(query) * score_stride_];
    const int first = matrix_keys(sight);
    score_keys<kHeads>(queries, cache.keys + size_t(first) * dim, scores + first, sight.lead - first);
    if (!sight.tail.empty())
      score_keys<kHeads>(queries, tail_keys_.data(), scores + sight.lead,
                         static_cast<int>(sight.tail.size()));
  }

  // Scores of `count` keys that lie in blocks. Writes up to a whole block more.
  template <int kHeads>
  void score_keys(const Element* queries, const Element* blocks, float* scores, int count) {
    int key = 0;
    for (; key + kLanes < count; key += 2 * kLanes)
      score_blocks<kHeads, 2>(queries, blocks + size_t(key) * d_.head_dim, scores + key);
    if (key < count)
      score_blocks<kHeads, 1>(queries, blocks + size_t(key) * d_.head_dim, scores + key);
  }

  template <int kHeads, int kBlocks>
  void score_blocks(const Element* queries, const Element* blocks, float* scores) {
    const int dim = d_.head_dim, units = dim / T::kPerUnit;
    __m512 sums[kHeads][kBlocks];
    for (auto& head : sums)
      for (__m512& sum : head) sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int unit = 0; unit < units; ++unit) {
      __m512i some[kBlocks];
      for (int b = 0; b < kBlocks; ++b)
        some[b] = load_units(blocks + size_t(b) * kLanes * dim + unit * kLanes * T::kPerUnit);
      for (int h = 0; h < kHeads; ++h) {
        const __m512i query = broadcast_unit(queries + h * dim + unit * T::kPerUnit);
        for (int b = 0; b < kBlocks; ++b) sums[h][b] = T::dot(sums[h][b], some[b], query);
      }
    }
    for (int h = 0; h < kHeads; ++h)
      for (int b = 0; b < kBlocks; ++b)
        _mm512_storeu_ps(scores + size_t(h) * score_stride_ + b * kLanes, sums[h][b]);
  }

  // Exponentials of a query's scores: of the matrix unit's keys to `weights_`, with zeros up to `most`,
  // of the others to `late_weights_`, with zeros to the end of a vector; `inverse_` is one over their sum.
  void soften(int query, const Sight& sight, int most) {
    const float infinity = std::numeric_limits<float>::infinity();
    const int keys = sight.count(), matrix = matrix_keys(sight), end = padded(keys, kLanes);
    float* scores = &scores_[size_t(query) * score_stride_];
    Element* weights = &weights_[size_t(query) * score_stride_];
    Element* late = &late_weights_[size_t(query) * score_stride_];
    for (int key = keys; key < end; ++key) scores[key] = -infinity;
    __m512 largest = _mm512_loadu_ps(scores);
    for (int key = kLanes; key < end; key += kLanes)
      largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + key));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int key = 0; key < end; key += kLanes) {
      const __m512 score = _mm512_loadu_ps(scores + key);
      const __mmask16 is_key = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-infinity), _CMP_NLE_UQ);
      const __m512 value = _mm512_maskz_mov_ps(is_key, exponential(_mm512_sub_ps(score, top)));
      sum = _mm512_add_ps(sum, value);
      T::store(key < matrix ? weights + key : late + key - matrix, value);
    }
    for (int key = matrix; key < most; key += kLanes) T::store(weights + key, _mm512_setzero_ps());
    inverse_[query] = 1.0f / _mm512_reduce_add_ps(sum);
  }

  // What the matrix unit has summed, and the other values: from the cache, then the gathered ones.
  template <int kHeads>
  void mix_rest(int row, int head, int query, int chunk, const CacheView<T>& cache) {
    Element* to = &s_.attended[(size_t(row) * d_.heads + head) * d_.head_dim + chunk];
    by_count(std::min(kChunk, d_.head_dim - chunk) / kLanes, [&](auto vectors) {
      mix_vectors<kHeads, vectors>(s_.sights[row], query, chunk, cache, to);
    });
  }

  template <int kHeads, int kVectors>
  void mix_vectors(const Sight& sight, int query, int chunk, const CacheView<T>& cache, Element* to) {
    const int keys = sight.count(), matrix = matrix_keys(sight);
    const int tail_from = sight.tail.empty() ? keys : sight.lead / T::kPerUnit * T::kPerUnit;
    __m512 sums[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVectors; ++v)
        sums[h][v] = matrix ? _mm512_loadu_ps(mixed_ + (query + h) * kChunk + v * kLanes)
                            : _mm512_setzero_ps();
    const Element* weights = &late_weights_[size_t(query) * score_stride_];
    add_values<kHeads, kVectors>(sums, cache.values + size_t(matrix) * d_.head_dim, weights,
                                 tail_from - matrix, chunk);
    if (tail_from < keys)
      add_values<kHeads, kVectors>(sums, tail_values_.data(), weights + tail_from - matrix,
                                   keys - tail_from, chunk);
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < kVectors; ++v)
        T::store(to + h * d_.head_dim + v * kLanes,
                 _mm512_mul_ps(sums[h][v], _mm512_set1_ps(inverse_[query + h])));
  }

  template <int kHeads, int kVectors>
  void add_values(__m512 (&sums)[kHeads][kVectors], const Element* values, const Element* weights,
                  int count, int chunk) {
    const int dim = d_.head_dim;
    for (int key = 0; key < count; key += T::kPerUnit) {
      const Element* group = values + (size_t(key) * dim + size_t(chunk) * T::kPerUnit);
      __m512i some[kVectors];
      for (int v = 0; v < kVectors; ++v) some[v] = load_units(group + v * kLanes * T::kPerUnit);
      for (int h = 0; h < kHeads; ++h) {
        const __m512i weight = broadcast_unit(weights + size_t(h) * score_stride_ + key);
        for (int v = 0; v < kVectors; ++v) sums[h][v] = T::dot(sums[h][v], some[v], weight);
      }
    }
  }

  Shared& s_;
  const Decoder& d_;
  const Pass& p_;
  size_t work_ = 0;  // operations done
  bool with_matrix_unit_ = false;
  int score_stride_ = 0;
  std::vector<float> scores_;                       // [queries of a block][keys]
  std::vector<Element> weights_, late_weights_;     // the same, softened
  std::vector<float> inverse_;                      // [queries of a block]
  std::vector<Element> matrix_queries_;             // [16][head_dim]
  std::vector<Element> tail_keys_, tail_values_, turned_;
  alignas(64) float mixed_[kTileUnits * kChunk];    // [queries of a block][dimensions]
  alignas(64) float out_[kMatrixRows * 2 * kPanel];
  alignas(64) float tile_out_[kMatrixRows * kPanel];
};

template <class T>
void run_pass(const Decoder& decoder, const Pass& pass, Pool& pool) {
  using Shared = typename Runner<T>::Shared;
  // A thread that comes late looks at what is shared after the pass is over.
  const auto shared = std::make_shared<Shared>(decoder, pass, pool.size());
  const auto runner = std::make_shared<Runner<T>>(*shared);  // the caller's own: without it, no pass
  const auto caller = std::this_thread::get_id();
  pool.run(std::make_shared<Pool::Job>([shared, runner, caller] {
    if (std::this_thread::get_id() == caller) return runner->run();
    try {
      Runner<T>(*shared).run();
    } catch (const std::bad_alloc&) {
      // A thread without memory stays out; it has taken no work yet.
    }
  }));
}

}  // namespace

extern "C" {

// Null where the system gives no more threads or memory.
void* sequoia_new_pool(int threads) {
  try {
    return new Pool(threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void sequoia_free_pool(void* pool) { delete static_cast<Pool*>(pool); }

void sequoia_pack(int is_bfloat, const void* weight, int outputs, int inputs, uint32_t* packed) {
  if (is_bfloat)
    pack_weight<Bfloat>(static_cast<const uint16_t*>(weight), outputs, inputs, packed);
  else
    pack_weight<Float>(static_cast<const float*>(weight), outputs, inputs, packed);
}

// Whether there was memory for the pass.
bool sequoia_run(const Decoder* decoder, const Pass* pass, void* pool) {
  try {
    if (decoder->is_bfloat)
      run_pass<Bfloat>(*decoder, *pass, *static_cast<Pool*>(pool));
    else
      run_pass<Float>(*decoder, *pass, *static_cast<Pool*>(pool));
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void sequoia_move_rows(const Decoder* decoder, const Segment* segment, int start,
                       const int32_t* rows, int count) {
  if (decoder->is_bfloat)
    move_rows<Bfloat>(*decoder, *segment, start, rows, count);
  else
    move_rows<Float>(*decoder, *segment, start, rows, count);
}

}  // extern "C"
