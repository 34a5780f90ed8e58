#!/usr/bin/env python3
"""Trains on the .beton files that write_datasets.py made; the same as `cgxffcv train`.

    python train_cifar_ffcv_cgx.py                                        one process
    mpirun -np 4 python train_cifar_ffcv_cgx.py --dist-backend cgx --quantization-bits 4

Without --training.recipe it trains resnet9: ResNet-9 in 20 epochs, 93.6 % on CIFAR-10. See --help for everything else.
The code is in cgxffcv/app/commands/train.py.
"""

from cgxffcv.start import script

if __name__ == "__main__":
    script("train_cifar_ffcv_cgx.py", "train")
