"""Settings of the package, as ``cfm.settings``."""

from __future__ import annotations

from cfm._arguments import check_whole


class Settings:
    """Settings that hold for all calls.

    Attributes
    ----------
    chunk_size
        Rows that tools read, and write, at a time from paths and to ``output=``; two chunks are in
        memory. A multiple of 2,048 and of ``batch_size`` gives the same bits as one chunk.

    Examples
    --------
    >>> import cfm
    >>> cfm.settings.chunk_size
    8192
    """

    chunk_size: int = 8192

    def __setattr__(self, name: str, value: int) -> None:
        if name != "chunk_size":
            raise AttributeError(f"There is no setting {name!r}; expected chunk_size.")
        super().__setattr__(name, check_whole(name, value))


settings = Settings()
