// simdgroup_matrix on the host: 8 x 8, two elements a lane.
//
// Lane l holds row (l/16)*4 + (l%8)/2, columns ((l%16)/8)*4 + (l%2)*2 and the next one. A load or a
// store touches a lane's own two elements and is no meeting: other lanes' stores are visible after
// a barrier only.
#ifndef SOFTWARE_METAL_MSL_MATRIX_H
#define SOFTWARE_METAL_MSL_MATRIX_H

#include "msl_simd.h"

namespace msl_host {

constexpr unsigned matrix_row(unsigned lane) { return lane / 16 * 4 + lane % 8 / 2; }
constexpr unsigned matrix_column(unsigned lane) { return lane % 16 / 8 * 4 + lane % 2 * 2; }

constexpr unsigned kOperandStride = 16;  // a, b and c stand this far apart in a slot

template <class T>
inline void gather_matrix(const Simdgroup& simdgroup, unsigned operand, float (&out)[8][8]) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    metal::vec<T, 2> pair;
    __builtin_memcpy(&pair, simdgroup.in[lane].bytes + operand * kOperandStride, sizeof(pair));
    out[matrix_row(lane)][matrix_column(lane)] = (float)pair.x;
    out[matrix_row(lane)][matrix_column(lane) + 1] = (float)pair.y;
  }
}

/// d = a * b + c, products and sums in f32, rounded to D once.
template <class D, class A, class B, class C>
inline void resolve_multiply(Simdgroup& simdgroup) {
  float a[8][8], b[8][8], c[8][8];
  gather_matrix<A>(simdgroup, 0, a);
  gather_matrix<B>(simdgroup, 1, b);
  gather_matrix<C>(simdgroup, 2, c);
  for (unsigned i = 0; i < 8; ++i) {
    for (unsigned k = 0; k < 8; ++k) {
      for (unsigned j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const float* at = &c[matrix_row(lane)][matrix_column(lane)];
    metal::vec<D, 2> pair = {(D)at[0], (D)at[1]};
    store(simdgroup.out[lane], pair);
  }
}

}  // namespace msl_host

namespace metal {

template <class T, int Cols, int Rows>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup matrices are 8 x 8");
  typedef vec<T, 2> storage_type;

  simdgroup_matrix() = default;
  /// A diagonal matrix.
  explicit simdgroup_matrix(T diagonal) {
    unsigned lane = ::msl_host::current->lane;
    unsigned row = ::msl_host::matrix_row(lane), column = ::msl_host::matrix_column(lane);
    elements_.x = row == column ? diagonal : T(0);
    elements_.y = row == column + 1 ? diagonal : T(0);
  }
  storage_type& thread_elements() { return elements_; }
  const storage_type& thread_elements() const { return elements_; }

 private:
  storage_type elements_;
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Cols, int Rows, class V>
inline simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(V value) {
  simdgroup_matrix<T, Cols, Rows> out;
  out.thread_elements() = vec<T, 2>((T)value);
  return out;
}
template <class T, int Cols, int Rows, class V>
inline simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(V value) {
  return simdgroup_matrix<T, Cols, Rows>((T)value);
}

template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const T* source,
                           ulong elements_per_row = 8, ulong2 origin = ulong2(0),
                           bool transpose = false) {
  unsigned lane = ::msl_host::current->lane;
  ulong row = ::msl_host::matrix_row(lane), column = ::msl_host::matrix_column(lane);
  const T* from = source + origin.y * elements_per_row + origin.x;
  for (ulong i = 0; i < 2; ++i) {
    matrix.thread_elements()[i] = transpose ? from[(column + i) * elements_per_row + row]
                                            : from[row * elements_per_row + column + i];
  }
}

template <class T>
inline void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, T* destination,
                            ulong elements_per_row = 8, ulong2 origin = ulong2(0),
                            bool transpose = false) {
  unsigned lane = ::msl_host::current->lane;
  ulong row = ::msl_host::matrix_row(lane), column = ::msl_host::matrix_column(lane);
  T* to = destination + origin.y * elements_per_row + origin.x;
  for (ulong i = 0; i < 2; ++i) {
    ulong at =
        transpose ? (column + i) * elements_per_row + row : row * elements_per_row + column + i;
    to[at] = matrix.thread_elements()[i];
  }
}

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c,
                                          MSL_SITE) {
  ::msl_host::Thread* self = ::msl_host::current;
  unsigned char* slot = self->simdgroup->in[self->lane].bytes;
  __builtin_memcpy(slot, &a.thread_elements(), sizeof(vec<A, 2>));
  __builtin_memcpy(slot + ::msl_host::kOperandStride, &b.thread_elements(), sizeof(vec<B, 2>));
  __builtin_memcpy(slot + 2 * ::msl_host::kOperandStride, &c.thread_elements(), sizeof(vec<C, 2>));
  ::msl_host::runtime->meet(::msl_host::Meeting::matrix, "simdgroup_multiply_accumulate", MSL_HERE,
                            &::msl_host::resolve_multiply<D, A, B, C>);
  d.thread_elements() = ::msl_host::load<vec<D, 2>>(self->simdgroup->out[self->lane]);
}

template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_SITE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(0.0f), line, column);
}

}  // namespace metal

#endif
