// The products as calls of cuBLAS, on torch's handle: its stream, its workspace, and so the same
// result in every run and in a captured graph.
#include "gemm.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <cublas_v2.h>

namespace fastlstm {
namespace cuda {
namespace {

cudaDataType_t data_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return CUDA_R_64F;
    case at::kFloat:
      return CUDA_R_32F;
    case at::kHalf:
      return CUDA_R_16F;
    case at::kBFloat16:
      return CUDA_R_16BF;
    default:
      TORCH_CHECK(false, "gemm takes float64, float32, float16 and bfloat16, got ", type);
  }
}

}  // namespace

Blas::Blas(bool tf32) : handle_(at::cuda::getCurrentCUDABlasHandle()), tf32_(tf32) {
  const auto handle = static_cast<cublasHandle_t>(handle_);
  cublasMath_t before;
  TORCH_CUDABLAS_CHECK(cublasGetMathMode(handle, &before));
  mode_before_ = static_cast<int>(before);
  // What a product may round is said by its compute type alone, not by the switches that torch sets
  // for its own matmul.
  TORCH_CUDABLAS_CHECK(cublasSetMathMode(
      handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                        CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
}

Blas::~Blas() {
  cublasSetMathMode(static_cast<cublasHandle_t>(handle_), static_cast<cublasMath_t>(mode_before_));
}

void Blas::gemm(const Gemm& p) const {
  if (p.M == 0 || p.N == 0) return;
  const bool is_double = p.type == at::kDouble;
  const cublasComputeType_t compute = is_double                       ? CUBLAS_COMPUTE_64F
                                      : tf32_ && p.type == at::kFloat ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                      : CUBLAS_COMPUTE_32F;
  const float one = 1, beta = p.accumulate;
  const double one_double = 1, beta_double = p.accumulate;
  auto scalar = [&](const float& f, const double& d) {
    return is_double ? static_cast<const void*>(&d) : &f;
  };
  // cuBLAS is column-major: what it calls A is b.
  auto op = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  TORCH_CUDABLAS_CHECK(cublasGemmStridedBatchedEx_64(
      static_cast<cublasHandle_t>(handle_), op(p.b_transposed), op(p.a_transposed), p.N, p.M, p.K,
      scalar(one, one_double), p.b, data_type(p.type), p.b_stride, p.b_step, p.a, data_type(p.type),
      p.a_stride, p.a_step, scalar(beta, beta_double), p.c, data_type(p.c_type), p.c_stride,
      p.c_step, p.count, compute, CUBLAS_GEMM_DEFAULT));
}

}  // namespace cuda
}  // namespace fastlstm
