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
#include <new>

#include "attention.h"
#include "shared.h"

namespace {

// Memory of one thread, all taken at the beginning, and the part of a pass that it does.
template <class T>
class Runner {
 public:
  using Element = typename T::Element;

  explicit Runner(Shared<T>& shared)
      : s_(shared), d_(shared.decoder), p_(shared.pass), attention_(shared) {
    turned_.resize(d_.head_dim);
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
        attention_.answer(layer, s_.blocks[unit / d_.kv_heads], unit % d_.kv_heads);
    });
  }

  Shared<T>& s_;
  const Decoder& d_;
  const Pass& p_;
  Attention<T> attention_;
  size_t work_ = 0;  // operations done
  bool with_matrix_unit_ = false;
  std::vector<Element> turned_;  // one head
  alignas(64) float out_[kMatrixRows * 2 * kPanel];
  alignas(64) float tile_out_[kMatrixRows * kPanel];
};

template <class T>
void run_pass(const Decoder& decoder, const Pass& pass, Pool& pool) {
  // A thread that comes late looks at what is shared after the pass is over.
  const auto shared = std::make_shared<Shared<T>>(decoder, pass, pool.size());
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
