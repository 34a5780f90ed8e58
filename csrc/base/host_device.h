/* HOST_DEVICE: the specifiers of a function defined for both host and device. */
#ifndef CGXFFCV_BASE_HOST_DEVICE_H
#define CGXFFCV_BASE_HOST_DEVICE_H

#ifdef __CUDACC__
#define HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define HOST_DEVICE static inline
#endif

#endif
