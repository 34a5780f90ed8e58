"""The communication hook for PyTorch's DistributedDataParallel; users import it from `cgxffcv.interop.torch`."""
