"""What comes out of operations."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.reverse import reverse

from projects.models import Operation, OperationStep
from projects.operations import base
from projects.operations.cancelling import may_be_cancelled


class StepSerializer(serializers.ModelSerializer[OperationStep]):
    class Meta:
        model = OperationStep
        fields = ["name", "title", "state", "attempt", "started_at", "finished_at", "detail"]
        read_only_fields = fields


class OperationError(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable.")
    detail = serializers.CharField()
    retryable = serializers.BooleanField()


class OperationSerializer(serializers.ModelSerializer[Operation]):
    """Fetch with `with_steps()`: two queries for any number of rows."""

    title = serializers.SerializerMethodField()
    project = serializers.UUIDField(source="project_uuid", read_only=True, allow_null=True)
    steps = StepSerializer(many=True, read_only=True)
    error = serializers.SerializerMethodField()
    result = serializers.DictField(
        child=serializers.JSONField(), read_only=True, help_text="What came of it; of a `move` with `downtime_seconds`."
    )
    created_by = serializers.CharField(source="created_by_label", read_only=True, help_text="Email, or who inside.")
    cancellable = serializers.SerializerMethodField()
    url = serializers.SerializerMethodField()

    class Meta:
        model = Operation
        fields = [
            "id", "kind", "title", "state", "project", "project_name", "steps", "error", "result", "attempt", "next_attempt_at",
            "cancel_requested_at", "cancellable", "created_by", "created_at", "started_at", "finished_at", "url",
        ]  # fmt: skip
        read_only_fields = fields

    def get_title(self, operation: Operation) -> str:
        return base.titles().get(operation.kind, operation.kind)

    @extend_schema_field(OperationError(allow_null=True))
    def get_error(self, operation: Operation) -> dict[str, Any] | None:
        return operation.error_body()

    def get_cancellable(self, operation: Operation) -> bool:
        return may_be_cancelled(operation)

    def get_url(self, operation: Operation) -> str:
        return str(reverse("operation-detail", kwargs={"pk": operation.pk}, request=self.context.get("request")))
