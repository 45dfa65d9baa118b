// Numbers in vectors: elements are float or bfloat16, and a unit is the 32 bits that hold one of the first
// or two of the second. A multiply-add over units is the same operation for both.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "AVX-512 (F, BW, VL, DQ) is needed"
#endif

namespace {

constexpr int kLanes = 16;       // numbers in a vector
constexpr int kPanel = 32;       // output columns of a panel
constexpr int kTileUnits = 16;   // units of depth in a tile
constexpr int kTile = kTileUnits * kLanes;
constexpr int kMatrixRows = 32;  // rows that the matrix unit takes at once
constexpr int kVectorRows = 12;  // rows that the vector unit takes at once
constexpr int kHeadGroup = 4;    // query heads that share the reading of a key
constexpr int kTileKeys = 32;    // keys in a tile of weights
constexpr int kLateKeys = 64;    // at least so many keys of a row are left to the vector unit
constexpr int kChunk = 64;       // dimensions of a head that are mixed at once

struct Float {
  using Element = float;
  static constexpr int kPerUnit = 1;
  static Element from(float value) { return value; }
  static float to(Element value) { return value; }
  static void store(Element* out, __m512 values) { _mm512_storeu_ps(out, values); }
  static __m512 dot(__m512 sum, __m512i weights, __m512i values) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(values), sum);
  }
};

struct Bfloat {
  using Element = uint16_t;
  static constexpr int kPerUnit = 2;
  static Element from(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<Element>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  static float to(Element value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  }
  static void store(Element* out, __m512 values) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static __m512 dot(__m512 sum, __m512i weights, __m512i values) {
#ifdef __AVX512BF16__
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights),
                            reinterpret_cast<__m512bh>(values));
#else
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const auto first = [](__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); };
    const auto second = [&](__m512i v) { return _mm512_castsi512_ps(_mm512_and_si512(v, upper)); };
    return _mm512_fmadd_ps(second(weights), second(values),
                           _mm512_fmadd_ps(first(weights), first(values), sum));
#endif
  }
};

inline __m512i load_units(const void* address) { return _mm512_loadu_si512(address); }

inline __m512i broadcast_unit(const void* address) {
  int32_t unit;
  std::memcpy(&unit, address, sizeof unit);
  return _mm512_set1_epi32(unit);
}

// e^x for x <= 0, about one unit in the last place off.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
  const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, power);
}

inline int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

}  // namespace
