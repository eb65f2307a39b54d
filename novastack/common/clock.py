"""Time. Always UTC; one place to freeze in tests. Leases use the database's clock instead (rule 2)."""

from datetime import UTC, datetime

from django.db import connection
from django.db.models import DateTimeField, Func


def now() -> datetime:
    """The current time, aware, UTC."""
    return datetime.now(UTC)


def database_now() -> datetime:
    """The database's clock at this moment: where many workers' clocks meet. One query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment.astimezone(UTC)


def isoformat(value: datetime) -> str:
    """`2026-11-20T12:00:00Z`, or with milliseconds when there are any."""
    text = value.astimezone(UTC).isoformat(timespec="milliseconds" if value.microsecond else "seconds")
    return text.replace("+00:00", "Z")


class DatabaseNow(Func):
    """The database's clock at this moment, also inside a long transaction."""

    template = "clock_timestamp()"
    output_field = DateTimeField()
