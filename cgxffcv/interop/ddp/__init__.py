"""The communication hook for PyTorch's DistributedDataParallel; users take it from `cgxffcv.interop.torch`."""
