// Functions that host code, compiled without nvcc, shares with kernels.
#pragma once

#ifdef __CUDACC__
#define FASTLSTM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTLSTM_HOST_DEVICE inline
#endif
