// What lets one cell header be compiled for several instruction sets in one library, and for CUDA.
//
// Each instruction set is one translation unit. Everything it includes lives in an anonymous
// namespace, so that the linker can never pick an AVX-512 copy of an inline function for a machine
// without AVX-512.
#pragma once

#if defined(__CUDACC__)
#define FASTLSTM_INLINE __device__ __forceinline__
#define FASTLSTM_UNROLL _Pragma("unroll")
#elif defined(FASTLSTM_SIMT)
// Kernels on an emulator, where unrolled loops would cost only the time to compile them.
#define FASTLSTM_INLINE inline
#define FASTLSTM_UNROLL
#else
#define FASTLSTM_INLINE inline __attribute__((always_inline))
#define FASTLSTM_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__CUDACC__) || defined(FASTLSTM_SIMT)
#define FASTLSTM_ISA_LOCAL_BEGIN
#define FASTLSTM_ISA_LOCAL_END
#else
#define FASTLSTM_ISA_LOCAL_BEGIN namespace {
#define FASTLSTM_ISA_LOCAL_END }
#endif
