"""Tar files for tests."""

import io
import tarfile


def write_tar(path, members, mode="w", **options):
    """A tar file of {name: bytes, or None for a folder}; mode and options are those of tarfile.open."""
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            member.size = len(data or b"")
            tar.addfile(member, io.BytesIO(data or b""))
    return path
