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

    def __init__(self) -> None:
        self._chunk_size = 8192

    @property
    def chunk_size(self) -> int:
        """Rows of a chunk."""
        return self._chunk_size

    @chunk_size.setter
    def chunk_size(self, value: int) -> None:
        self._chunk_size = check_whole("chunk_size", value)


settings = Settings()
