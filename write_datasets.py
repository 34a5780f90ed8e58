#!/usr/bin/env python3
"""Writes CIFAR-10 as two .beton files, for train_cifar_ffcv_cgx.py; the same as `cgxffcv write`.

    python write_datasets.py --config-file default_config.yaml

See --help. The code is in cgxffcv/app/commands/write.py.
"""

from cgxffcv.start import script

if __name__ == "__main__":
    script("write_datasets.py", "write")
