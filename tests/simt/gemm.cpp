// In place of csrc/cuda/layer/gemm.cpp: the same products as plain loops, summed in a wider type,
// since it is not cuBLAS that is to be tested.
#include "cuda/layer/gemm.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>

namespace fastlstm {
namespace cuda {
namespace {

float round_to_tf32(float x) {
  if (x != x) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

template <class S, class C, class Sum>
void run(const Gemm& p, bool tf32) {
  const S* a = static_cast<const S*>(p.a);
  const S* b = static_cast<const S*>(p.b);
  C* c = static_cast<C*>(p.c);
  auto operand = [&](S x) {
    return tf32 ? static_cast<Sum>(round_to_tf32(static_cast<float>(x))) : static_cast<Sum>(x);
  };
  for (int64_t i = 0; i < p.count; ++i, a += p.a_step, b += p.b_step, c += p.c_step) {
    for (int64_t m = 0; m < p.M; ++m) {
      for (int64_t n = 0; n < p.N; ++n) {
        Sum sum = 0;
        for (int64_t k = 0; k < p.K; ++k)
          sum += operand(a[p.a_transposed ? k * p.a_stride + m : m * p.a_stride + k]) *
                 operand(b[p.b_transposed ? n * p.b_stride + k : k * p.b_stride + n]);
        C& out = c[m * p.c_stride + n];
        out = static_cast<C>(p.accumulate ? static_cast<Sum>(out) + sum : sum);
      }
    }
  }
}

template <class S>
void run_16_bit(const Gemm& p) {
  p.c_type == at::kFloat ? run<S, float, double>(p, false) : run<S, S, float>(p, false);
}

}  // namespace

Blas::Blas(bool tf32) : handle_(nullptr), mode_before_(0), tf32_(tf32) {}

Blas::~Blas() = default;

// What cuBLAS refuses.
void check_stride(const char* name, int64_t stride, int64_t row) {
  TORCH_CHECK(stride >= std::max<int64_t>(1, row), "rows of ", name, " are ", row,
              " long and only ", stride, " apart");
}

void Blas::gemm(const Gemm& p) const {
  check_stride("a", p.a_stride, p.a_transposed ? p.M : p.K);
  check_stride("b", p.b_stride, p.b_transposed ? p.K : p.N);
  check_stride("c", p.c_stride, p.N);
  switch (p.type) {
    case at::kDouble:
      return run<double, double, long double>(p, false);
    case at::kFloat:
      return run<float, float, double>(p, tf32_);
    case at::kHalf:
      return run_16_bit<c10::Half>(p);
    case at::kBFloat16:
      return run_16_bit<c10::BFloat16>(p);
    default:
      TORCH_CHECK(false, "no product of ", p.type);
  }
}

}  // namespace cuda
}  // namespace fastlstm
