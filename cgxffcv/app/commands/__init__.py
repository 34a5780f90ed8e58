"""What `cgxffcv write`, `train` and `predict` do, and with the first two the scripts: main(prog, arguments) of each."""
