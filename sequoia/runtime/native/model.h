// What Python hands over (`structures.py` has the same fields), and how to read it.

#pragma once

#include <utility>
#include <vector>

#include "units.h"

extern "C" {

struct Linear {
  const uint32_t* packed;  // panels of tiles; see pack
  const float* bias;       // [outputs], or null
  int32_t inputs, outputs;
};

struct Layer {
  Linear qkv, attention_output, gate_up, down;
  const float* input_norm;      // [hidden]
  const float* attention_norm;  // [hidden]
};

struct Decoder {
  int32_t layer_count, hidden, heads, kv_heads, head_dim, ffn, vocabulary, is_bfloat;
  float norm_epsilon, attention_scale;
  const Layer* layers;
  const float* final_norm;  // [hidden]
  Linear head;
  Linear fusion;  // of a draft that reads features; packed is null where there is none
  const void* embedding;  // elements [tokens][embedding_size]
  int32_t embedding_size;
};

struct Segment {
  void* cache;               // [layers][keys, values][kv_heads][capacity][head_dim], in blocks
  const uint8_t* visible;    // [rows][visible_stride]
  int64_t visible_stride;    // at least the valid rows and the new ones
  int32_t capacity, length, rows;
};

struct Pass {
  int32_t segment_count, rows, with_logits, feature_size;
  const Segment* segments;
  const int32_t* token_ids;
  const int32_t* positions;
  const float* cosines;        // [positions][head_dim]
  const float* sines;          // the same
  const float* read_features;  // [rows][feature_size], where the fusion reads any
  float* features;             // [rows][hidden]
  float* logits;               // [rows][vocabulary]
};

}  // extern "C"

namespace {

// The keys that a row sees: 0, 1, ... up to `lead`, and then some more in their order.
struct Sight {
  const Segment* segment;
  int row;  // in the cache
  int lead;
  std::vector<int> tail;
  int count() const { return lead + static_cast<int>(tail.size()); }
};

std::vector<Sight> see(const Pass& pass) {
  std::vector<Sight> sights;
  sights.reserve(pass.rows);
  for (int index = 0; index < pass.segment_count; ++index) {
    const Segment& segment = pass.segments[index];
    const int keys = segment.length + segment.rows;
    for (int row = 0; row < segment.rows; ++row) {
      const uint8_t* visible = segment.visible + row * segment.visible_stride;
      const auto* hidden = static_cast<const uint8_t*>(std::memchr(visible, 0, keys));
      Sight sight{&segment, segment.length + row, hidden ? int(hidden - visible) : keys, {}};
      for (int key = sight.lead; key < keys; ++key)
        if (visible[key]) sight.tail.push_back(key);
      sights.push_back(std::move(sight));
    }
  }
  return sights;
}

// Where a session's keys and values lie. Keys stand in blocks of sixteen, unit by unit, so that one
// vector holds the same unit of sixteen keys; values in groups of as many keys as fill a unit.
template <class T>
struct CacheView {
  using Element = typename T::Element;
  Element* keys;
  Element* values;
  int head_dim;

  CacheView(const Decoder& decoder, const Segment& segment, int layer, int head)
      : head_dim(decoder.head_dim) {
    const size_t plane = size_t(segment.capacity) * head_dim;
    keys = static_cast<Element*>(segment.cache) +
           (size_t(layer) * 2 * decoder.kv_heads + head) * plane;
    values = keys + size_t(decoder.kv_heads) * plane;
  }
  Element& key(int row, int dim) const { return keys[key_offset(row, dim, head_dim)]; }
  Element& value(int row, int dim) const { return values[value_offset(row, dim, head_dim)]; }

  static size_t key_offset(int row, int dim, int head_dim) {
    const int unit = dim / T::kPerUnit;
    return size_t(row / kLanes) * kLanes * head_dim +
           (size_t(unit) * kLanes + row % kLanes) * T::kPerUnit + dim % T::kPerUnit;
  }
  static size_t value_offset(int row, int dim, int head_dim) {
    return (size_t(row / T::kPerUnit) * head_dim + dim) * T::kPerUnit + row % T::kPerUnit;
  }
};

// Move rows of a cache towards its beginning: rows[i] becomes row start + i.
template <class T>
void move_rows(const Decoder& decoder, const Segment& segment, int start, const int32_t* rows,
               int count) {
  for (int layer = 0; layer < decoder.layer_count; ++layer)
    for (int head = 0; head < decoder.kv_heads; ++head) {
      const CacheView<T> cache(decoder, segment, layer, head);
      for (int index = 0; index < count; ++index) {
        if (rows[index] == start + index) continue;
        for (int at = 0; at < decoder.head_dim; ++at) {
          cache.key(start + index, at) = cache.key(rows[index], at);
          cache.value(start + index, at) = cache.value(rows[index], at);
        }
      }
    }
}

}  // namespace
