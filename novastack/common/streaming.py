"""Answers that are streamed as a file."""

from __future__ import annotations

from collections.abc import Iterator

from django.http import StreamingHttpResponse


def attachment(pieces: Iterator[bytes], name: str, size_bytes: int | None) -> StreamingHttpResponse:
    """`pieces` is closed with the answer, also when nothing of it was sent. `size_bytes` None: not known before."""
    response = StreamingHttpResponse(_Closing(pieces), content_type="application/octet-stream")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["Cache-Control"] = "no-store"
    response["X-Content-Type-Options"] = "nosniff"
    if size_bytes is not None:
        response["Content-Length"] = str(size_bytes)
    return response


class _Closing:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
