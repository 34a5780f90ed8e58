"""python -m cgxffcv: the same as the command cgxffcv."""

from cgxffcv.cli import main

if __name__ == "__main__":
    main()
