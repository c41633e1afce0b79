// Tables that the host knows and the device needs (step.h).
#include "../device/device.cuh"
#include "step.h"

namespace fastlstm {
namespace cuda {

FASTLSTM_KERNEL void write_table_kernel(const WriteTable p) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < p.count) p.table[i] = p.values[i];
}

void write_table(const WriteTable& p, cudaStream_t stream) {
  device::launch(&write_table_kernel, dim3(1), dim3(kTableChunk), 0, stream, p);
}

// A block a step.
FASTLSTM_KERNEL void write_input_rows_kernel(const WriteInputRows p) {
  const int64_t begin = p.step_begin[blockIdx.x], rows = p.step_begin[blockIdx.x + 1] - begin;
  const int64_t t = p.t_begin + blockIdx.x;
  for (int64_t n = threadIdx.x; n < rows; n += blockDim.x)
    p.input_row[begin + n] = t * p.N + p.batch_row[n];
}

void write_input_rows(const WriteInputRows& p, cudaStream_t stream) {
  device::launch(&write_input_rows_kernel, dim3(p.steps), dim3(128), 0, stream, p);
}

}  // namespace cuda
}  // namespace fastlstm
