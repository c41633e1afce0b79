// In place of CUDA's header of this name: the types that host code next to the kernels uses.
#pragma once

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
