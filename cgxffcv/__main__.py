"""python -m cgxffcv: the same as the command cgxffcv."""

from cgxffcv.start import main

if __name__ == "__main__":
    main()
