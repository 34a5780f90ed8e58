/* The libraries that networks on GPUs need. */
#ifndef CGXFFCV_NN_LIBRARIES_H
#define CGXFFCV_NN_LIBRARIES_H

/* cuDNN's version (91300 is 9.13.0); opens the library to find it. 0 if it cannot be used, and without CUDA. */
int nn_cudnn_version(void);

#endif
