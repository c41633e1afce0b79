// Matrix products of a layer on CUDA. Sums are in float32, in float64 for float64: that of 16-bit
// operands is rounded once, when it is written.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace fastlstm {
namespace cuda {

// Row-major: c[m, n] (+)= sum over k of a[m, k] * b[k, n], `count` times. Strides of rows and steps
// from one product to the next are in elements.
struct Gemm {
  at::ScalarType type;    // of a and b
  at::ScalarType c_type;  // the same, or that of the sums
  int64_t M, N, K;
  const void* a;  // [M, K], or with a_transposed [K, M]
  int64_t a_stride;
  bool a_transposed;
  const void* b;  // [K, N], or with b_transposed [N, K]
  int64_t b_stride;
  bool b_transposed;
  void* c;  // [M, N]
  int64_t c_stride;
  bool accumulate;
  int64_t count = 1;
  int64_t a_step = 0, b_step = 0, c_step = 0;
};

// Of a matrix whose rows are adjacent elements. One row has any stride; cuBLAS wants one that is no
// less than the row is long.
inline int64_t row_stride(const at::Tensor& t) {
  return t.size(0) > 1 ? t.stride(0) : std::max<int64_t>(1, t.size(1));
}

// c (+)= op(a) op(b) of such matrices.
inline Gemm gemm_of(const at::Tensor& a, bool a_transposed, const at::Tensor& b, bool b_transposed,
                    const at::Tensor& c, bool accumulate) {
  Gemm p{};
  p.type = a.scalar_type();
  p.c_type = c.scalar_type();
  p.M = c.size(0);
  p.N = c.size(1);
  p.K = a.size(a_transposed ? 0 : 1);
  p.a = a.const_data_ptr();
  p.a_stride = row_stride(a);
  p.a_transposed = a_transposed;
  p.b = b.const_data_ptr();
  p.b_stride = row_stride(b);
  p.b_transposed = b_transposed;
  p.c = c.data_ptr();
  p.c_stride = row_stride(c);
  p.accumulate = accumulate;
  return p;
}

// Products on the stream that is current when it is made. One for a whole layer: to ask torch for
// its handle takes time on the host. That it matters is an estimate.
class Blas {
 public:
  // tf32: float32 operands may be rounded to 10 bits of mantissa.
  explicit Blas(bool tf32);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  void gemm(const Gemm& p) const;

 private:
  void* handle_;
  int mode_before_;
  bool tf32_;
};

}  // namespace cuda
}  // namespace fastlstm
