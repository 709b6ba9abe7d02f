// Products of one tile of query rows in AMX's registers: up to 32 rows times two vectors of
// columns, 16 slots of the sum at a time.
#pragma once

#include "cpu/fast/amx.h"
#include "cpu/fast/prefill_near.h"
#include "cpu/fast/prefill_pack.h"
#include "cpu/fast/prefill_tile.h"

namespace metal_sdpa::cpu::METAL_SDPA_ISA {

#if defined(METAL_SDPA_HAS_AMX)

static_assert(kLanes == kAmxRows, "a vector is a row of a register");

/// Registers 0 and 1 (rows 0 to 15) and, with kTwo, 2 and 3 (rows 16 to 31) = a b over `depth`
/// slots, a multiple of 16. Rows of a are a_step slots apart, b is a panel. At D 1024, the most, 32
/// products follow each other: 16 + 1 + 32 roundings, fewer than the 63 of f32 products in chains
/// of 32.
template <bool kTwo>
inline void multiply_registers(const float* a, sdpa_i64 a_step, const float* b, int depth,
                               SpreadRows& near) {
  amx_zero<0>();
  amx_zero<1>();
  if constexpr (kTwo) {
    amx_zero<2>();
    amx_zero<3>();
  }
  for (int k = 0; k < depth; k += kAmxRows) {
    near.step(kAmxRows);
    amx_load<4>(a + k, a_step);
    amx_load<6>(b + k * kPanel, kPanel);
    amx_dot<0, 4, 6>();
    amx_load<7>(b + k * kPanel + kLanes, kPanel);
    amx_dot<1, 4, 7>();
    if constexpr (kTwo) {
      amx_load<5>(a + kAmxRows * a_step + k, a_step);
      amx_dot<2, 5, 6>();
      amx_dot<3, 5, 7>();
    }
  }
}

/// Stores the sums of multiply_registers.
template <bool kTwo>
inline void store_registers(float* to, sdpa_i64 step) {
  amx_store<0>(to, step);
  amx_store<1>(to + kLanes, step);
  if constexpr (kTwo) {
    amx_store<2>(to + kAmxRows * step, step);
    amx_store<3>(to + kAmxRows * step + kLanes, step);
  }
}

/// As score_tile, for one or two registers of rows, which are `depth` slots apart.
template <bool kTwo>
void score_registers(const float* q, const float* k, int depth, int n_keys, float scale,
                     SpreadRows& near, float* scores) {
  constexpr int kRows = kTwo ? 2 * kAmxRows : kAmxRows;
  for (int j = 0; j < n_keys; j += kPanel) {
    const float* panel = k + static_cast<sdpa_i64>(j) * depth;
    float* to = scores + j;
    multiply_registers<kTwo>(q, depth, panel, depth, near);
    store_registers<kTwo>(to, kScoreStep);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kPanel; c += kLanes) {
        float* score = to + r * kScoreStep + c;
        store(score, load(score) * splat(scale));
      }
    }
  }
}

/// As add_values_tile. `depth`, rounded up to 16 slots, stays within the panels, and weights and
/// values up to there are finite.
template <bool kTwo>
void add_values_registers(int n_rows, const float* weights, const float* values, int depth,
                          int panel_depth, const float* factors, SpreadRows& near, float* out,
                          int n_vecs) {
  alignas(64) float sums[(kTwo ? 2 : 1) * kAmxRows * kPanel];
  const int out_step = numerator_step(n_vecs);
  for (int c = 0; c < n_vecs; c += 2) {
    const float* panel = values + static_cast<sdpa_i64>(c) * kLanes * panel_depth;
    multiply_registers<kTwo>(weights, kScoreStep, panel, depth, near);
    store_registers<kTwo>(sums, kPanel);
    for (int r = 0; r < n_rows; ++r) {
      const Vec factor = splat(factors[r]);
      for (int i = 0; i < smaller(2, n_vecs - c); ++i) {
        float* numerators = out + r * out_step + (c + i) * kLanes;
        store(numerators, fma(load(numerators), factor, load(sums + r * kPanel + i * kLanes)));
      }
    }
  }
}

/// The two products, called as TileProducts are.
struct RegisterProducts {
  int n_rows;

  void score(const float* q, const float* k, int depth, int n_keys, float scale, SpreadRows& near,
             float* scores) const {
    const auto run = n_rows > kAmxRows ? score_registers<true> : score_registers<false>;
    run(q, k, depth, n_keys, scale, near, scores);
  }

  void add_values(const float* weights, const float* values, int depth, int panel_depth, int,
                  const float* factors, SpreadRows& near, float* out, int n_vecs) const {
    const auto run = n_rows > kAmxRows ? add_values_registers<true> : add_values_registers<false>;
    run(n_rows, weights, values, depth, panel_depth, factors, near, out, n_vecs);
  }
};

#endif

/// The products of a tile of n_rows rows of T.
template <typename T>
inline auto products_of(int n_rows) {
#if defined(METAL_SDPA_HAS_AMX)
  if constexpr (kUsesAmx<T>) return RegisterProducts{n_rows};
#endif
  if constexpr (!kUsesAmx<T>) return tile_products<kPairs<T>>(n_rows);
}

}  // namespace metal_sdpa::cpu::METAL_SDPA_ISA
