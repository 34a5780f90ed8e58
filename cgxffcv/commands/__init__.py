"""What `cgxffcv write` and `cgxffcv train` do, and with them the two scripts: main(prog, arguments) of each module."""
