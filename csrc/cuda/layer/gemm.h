// Matrix products of a layer on CUDA. Sums are in float32, in float64 for float64: that of 16-bit
// operands is rounded once, when it is written.
#pragma once

#include <ATen/core/Tensor.h>

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
