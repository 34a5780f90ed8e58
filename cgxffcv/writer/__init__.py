"""Writing .beton files: rows from a data set of any kind, the workers that read it, and the file."""

from cgxffcv.writer.writer import DatasetWriter, WriteReport

__all__ = ["DatasetWriter", "WriteReport"]
