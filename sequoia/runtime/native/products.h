// Products of a few rows by packed weights, on the matrix unit (AMX) or the vector unit.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "units.h"

namespace {

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
constexpr bool kHasMatrixUnit = true;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns_bytes[16] = {};
  uint8_t rows[16] = {};
};

void take_matrix_unit() {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.columns_bytes[tile] = 64;
    shapes.rows[tile] = 16;
  }
  _tile_loadconfig(&shapes);
}
void release_matrix_unit() { _tile_release(); }

inline void prefetch_tile(const uint32_t* tile) {
  constexpr int kAhead = 8 * kTile;
  for (int line = 0; line < kTileUnits; ++line)
    _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + line * kLanes), _MM_HINT_T0);
}

// Sixteen rows by two panels, or thirty-two by one; `out` is [rows][panels * 32].
template <int kRowTiles, int kPanels>
void multiply_tiles(const uint16_t* a, int stride, const uint32_t* panel, int tiles, float* out) {
  static_assert(kRowTiles * kPanels <= 2, "eight tiles in all");
  const size_t panel_size = size_t{2} * tiles * kTile;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kRowTiles * kPanels == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int depth = 0; depth < tiles; ++depth) {
    const uint32_t* b = panel + size_t{2} * depth * kTile;
    _tile_loadd(4, a + depth * 2 * kTileUnits, stride * 2);
    if constexpr (kRowTiles == 2) _tile_loadd(5, a + size_t{16} * stride + depth * 2 * kTileUnits, stride * 2);
    prefetch_tile(b);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRowTiles == 2) _tile_dpbf16ps(2, 5, 6);
    prefetch_tile(b + kTile);
    _tile_loadd(7, b + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles == 2) _tile_dpbf16ps(3, 5, 7);
    if constexpr (kPanels == 2) {
      prefetch_tile(b + panel_size);
      _tile_loadd(6, b + panel_size, 64);
      _tile_dpbf16ps(2, 4, 6);
      prefetch_tile(b + panel_size + kTile);
      _tile_loadd(7, b + panel_size + kTile, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  constexpr int kStride = kPanel * kPanels;
  _tile_stored(0, out, kStride * 4);
  _tile_stored(1, out + 16, kStride * 4);
  if constexpr (kPanels == 2) {
    _tile_stored(2, out + 32, kStride * 4);
    _tile_stored(3, out + 48, kStride * 4);
  }
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, out + 16 * kStride, kStride * 4);
    _tile_stored(3, out + 16 * kStride + 16, kStride * 4);
  }
}

bool ask_for_matrix_unit() {
  constexpr int kAskPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
}
#else
constexpr bool kHasMatrixUnit = false;
void take_matrix_unit() {}
void release_matrix_unit() {}
bool ask_for_matrix_unit() { return false; }
#endif

bool matrix_unit_allowed() {
  static const bool allowed = kHasMatrixUnit && ask_for_matrix_unit();
  return allowed;
}

// A few rows by one panel on the vector unit; `out` is [rows][stride].
template <class T, int kRows>
void multiply_rows(const typename T::Element* a, int stride, const uint32_t* panel, int tiles,
                   float* out, int out_stride) {
  __m512 sums[kRows][2];
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
  for (int depth = 0; depth < tiles; ++depth) {
    const uint32_t* b = panel + size_t{2} * depth * kTile;
    for (int unit = 0; unit < kTileUnits; ++unit, b += kLanes) {
      const __m512i left = load_units(b), right = load_units(b + kTile);
      _mm_prefetch(reinterpret_cast<const char*>(b + 8 * kTile), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(b + 9 * kTile), _MM_HINT_T0);
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        const __m512i value =
            broadcast_unit(a + size_t(row) * stride + (depth * kTileUnits + unit) * T::kPerUnit);
        sums[row][0] = T::dot(sums[row][0], left, value);
        sums[row][1] = T::dot(sums[row][1], right, value);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    _mm512_storeu_ps(out + row * out_stride, sums[row][0]);
    _mm512_storeu_ps(out + row * out_stride + kLanes, sums[row][1]);
  }
}

template <class T, int kRows = kVectorRows>
void multiply_some_rows(int rows, const typename T::Element* a, int stride, const uint32_t* panel,
                        int tiles, float* out, int out_stride) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      multiply_rows<T, kRows>(a, stride, panel, tiles, out, out_stride);
    else
      multiply_some_rows<T, kRows - 1>(rows, a, stride, panel, tiles, out, out_stride);
  }
}

// Tiles in the order in which a product reads them: [panel][depth][left, right][unit][column].
template <class T>
void pack_weight(const typename T::Element* weight, int outputs, int inputs, uint32_t* packed) {
  const int tiles = inputs / (kTileUnits * T::kPerUnit);
  for (int panel = 0; panel < padded(outputs, kPanel) / kPanel; ++panel)
    for (int depth = 0; depth < tiles; ++depth)
      for (int side = 0; side < 2; ++side)
        for (int unit = 0; unit < kTileUnits; ++unit)
          for (int lane = 0; lane < kLanes; ++lane, ++packed) {
            const int output = panel * kPanel + side * kLanes + lane;
            const int input = (depth * kTileUnits + unit) * T::kPerUnit;
            if (output < outputs)
              std::memcpy(packed, weight + size_t(output) * inputs + input, 4);
            else
              *packed = 0;
          }
}

}  // namespace
