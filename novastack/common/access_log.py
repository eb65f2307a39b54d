"""gunicorn's log without secrets: `--logger-class=novastack.common.access_log.MaskingLogger`.

Invitations, password resets and address confirmations carry their secret in the path; a Referer repeats it.
"""

from __future__ import annotations

import logging
from typing import Any

from gunicorn.glogging import Logger

from novastack.common.logs import mask_paths


class MaskPaths(logging.Filter):
    """Of a logger: the finished line is masked, wherever in it an address stands (request line, Referer, error)."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask_paths(record.getMessage()), ()
        return True


class MaskingLogger(Logger):
    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for logger in (self.access_log, self.error_log):
            if not any(isinstance(found, MaskPaths) for found in logger.filters):
                logger.addFilter(MaskPaths())
