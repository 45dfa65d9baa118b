// Attention of some rows to what they see, by one thread.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "shared.h"

namespace {

template <class T>
class Attention {
 public:
  using Element = typename T::Element;

  explicit Attention(Shared<T>& shared) : s_(shared), d_(shared.decoder) {
    const int queries = std::max(kTileUnits, d_.heads / d_.kv_heads);
    score_stride_ = padded(s_.widest + 2 * kLanes, kTileKeys);
    scores_.resize(size_t(queries) * score_stride_);
    weights_.resize(size_t(queries) * score_stride_);
    late_weights_.resize(size_t(queries) * score_stride_);
    inverse_.resize(queries);
    matrix_queries_.resize(size_t(kTileUnits) * d_.head_dim);
    tail_keys_.resize(size_t(padded(s_.longest_tail, kLanes)) * d_.head_dim);
    tail_values_.resize(size_t(padded(s_.longest_tail + T::kPerUnit, kLanes)) * d_.head_dim);
  }

  // Queries of a block's rows against one head of keys. The first keys of a row are the matrix unit's,
  // the last ones, which may lie scattered, the vector unit's; how many depends on their number alone.
  void answer(int layer, const Block& block, int kv_head) {
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

 private:
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

  Shared<T>& s_;
  const Decoder& d_;
  int score_stride_ = 0;
  std::vector<float> scores_;                    // [queries of a block][keys]
  std::vector<Element> weights_, late_weights_;  // the same, softened
  std::vector<float> inverse_;                   // [queries of a block]
  std::vector<Element> matrix_queries_;          // [16][head_dim]
  std::vector<Element> tail_keys_, tail_values_;
  alignas(64) float mixed_[kTileUnits * kChunk];  // [queries of a block][dimensions]
};

}  // namespace
