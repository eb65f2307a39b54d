"""Projects: list, make, change, delete, act."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.models import Scope
from accounts.permissions import Capability, require_scope
from accounts.services import organization_for
from novastack.common.api import SecretResponse, idempotent
from novastack.common.errors import Invalid, NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import AcceptedProject, ProjectScoped, parsed, render_project
from projects.api.filters import FILTERS, ProjectFilter
from projects.api.inputs import ActionInput, ProjectChange, ProjectCreate, ProjectReplace
from projects.api.keys import CreatedProject, key_body
from projects.api.outputs import ProjectSerializer, live_operations
from projects.models import ApiKey, Operation, Project
from projects.services import plan_change, project_action, project_create, project_delete, project_purge, project_update
from projects.services.actions import check_confirm
from projects.services.changes import CHANGEABLE

# What a PUT of a whole project may carry along although it has moved on since it was read.
VOLATILE = {"status", "status_detail", "desired_status", "size_bytes", "operation", "updated_at", "recycle_until"}
CREATE_EXAMPLES = [
    OpenApiExample("The least", value={"name": "shop"}, request_only=True),
    OpenApiExample(
        "More of it", request_only=True,
        value={
            "name": "Shop", "engine": "postgresql", "version": "17", "region": "local", "plan": "small",
            "description": "Orders and customers", "database_name": "shop", "username": "shop_app",
            "limits": {"memory_bytes": 268435456, "cpus": 0.25}, "labels": {"team": "web"},
            "deletion_protection": True,
        },
    ),
]  # fmt: skip
ACTION_EXAMPLES = [
    OpenApiExample("Restart", value={"action": "restart"}, request_only=True),
    OpenApiExample("Rotate", value={"action": "rotate_password", "end_sessions": True}, request_only=True),
    OpenApiExample("Undelete", value={"action": "undelete", "name": "Shop 2"}, request_only=True),
]


@extend_schema(tags=["projects"])
class ProjectListView(ProjectScoped, generics.ListAPIView[Project]):
    queryset = Project.objects.none()
    serializer_class = ProjectSerializer
    filter_backends = FILTERS
    filterset_class = ProjectFilter
    search_fields: ClassVar[list[str]] = ["name", "slug", "description"]
    search_column = "search_text"  # of these fields
    ordering_fields: ClassVar[list[str]] = [
        "created_at", "updated_at", "name", "status", "engine", "size_bytes", "recycle_until",
    ]  # fmt: skip

    def get_queryset(self) -> QuerySet[Project]:
        if getattr(self, "swagger_fake_view", False):
            return Project.objects.none()
        require_scope(self.principal, Scope.READ)
        rows: QuerySet[Project] = Project.objects.for_principal(self.principal).select_related(
            "organization", "region", "plan", "created_by"
        )
        return rows

    @extend_schema(operation_id="projects_list", responses={200: ProjectSerializer(many=True), **problems(400, 404)})
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Projects that the caller may see. Without `status`, the recycle bin is left out; `status=recycled` lists it."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        context = {"request": request, "operations": live_operations(page)}
        return self.get_paginated_response(ProjectSerializer(page, many=True, context=context).data)

    @extend_schema(
        operation_id="projects_create", parameters=[IDEMPOTENCY_KEY], request=ProjectCreate, examples=CREATE_EXAMPLES,
        responses={201: CreatedProject, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """Ask for a database. The answer comes at once, with the `operation` that makes it real and a `Location`."""
        ref = request.data.get("organization") if isinstance(request.data, dict) else None
        organization = organization_for(
            self.principal, ref if isinstance(ref, str) else None, capability=Capability.PROJECT_CREATE
        )
        wanted = parsed(ProjectCreate, request).request()
        shown: list[tuple[ApiKey, str]] = []

        def make() -> tuple[int, dict[str, str]]:
            project = project_create(
                principal=self.principal, organization=organization, request=wanted, made_keys=shown
            )  # fmt: skip
            operation = Operation.objects.values_list("pk", flat=True).get(
                project_uuid=project.pk
            )  # it is new: its first
            return 201, {"project": str(project.pk), "operation": str(operation)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            location = reverse("project-detail", kwargs={"pk": resource["project"]}, request=request)
            answer = self.answer(
                request, UUID(resource["project"]), operation_of(resource), status, headers={"Location": location}
            )
            if not wanted.api_keys:
                return answer
            rows = ApiKey.objects.filter(project_id=resource["project"]).order_by("id")
            clear = {key.pk: value for key, value in shown}
            made = [key_body(key, clear.get(key.pk)) for key in rows[: wanted.api_keys]]
            return SecretResponse({**answer.data, "api_keys": made}, status=status, headers={"Location": location})

        return idempotent(request, organization_id=organization.pk, effect=make, rebuild=rebuild)


def operation_of(resource: dict[str, str]) -> Operation | None:
    """The operation that an answer named; operations are kept, so a replay finds it too."""
    return Operation.objects.filter(pk=resource["operation"]).first()


def flag(request: Request, name: str) -> bool | None:
    """A query parameter `true` or `false`; None if it is missing."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if text not in {"true", "false", "1", "0"}:
        raise Invalid.field(name, "invalid", "Use true or false.")
    return text in {"true", "1"}


@extend_schema(tags=["projects"])
class ProjectView(ProjectScoped, generics.GenericAPIView[Project]):
    queryset = Project.objects.none()
    serializer_class = ProjectSerializer

    @extend_schema(operation_id="projects_retrieve", responses={200: ProjectSerializer, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One project."""
        return Response(render_project(self.project(), request))

    @extend_schema(
        operation_id="projects_replace", request=ProjectReplace,
        responses={200: ProjectSerializer, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def put(self, request: Request, pk: UUID) -> Response:
        """Change `name, description, labels, limits, tls_required, deletion_protection`. What is left out stays; what can't be
        changed may be sent along as it was read. New `limits` start an operation `resize`, `tls_required` a `change_tls`."""
        return self._change(request, ProjectReplace, volatile=VOLATILE)

    @extend_schema(
        operation_id="projects_update", request=ProjectChange,
        examples=[OpenApiExample("Less memory", value={"limits": {"memory_bytes": 268435456}}, request_only=True)],
        responses={200: ProjectSerializer, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def patch(self, request: Request, pk: UUID) -> Response:
        """Change some of `name, description, labels, limits, tls_required, deletion_protection`. New `limits` start a `resize`,
        `tls_required` a `change_tls`, both together a `reconfigure`; `plan` (alone) a `change_plan`, or the `move` that it
        implies: `POST projects/{id}/move/` with `dry_run` says which."""
        return self._change(request, ProjectChange, volatile=set())

    def _change(self, request: Request, shape: type[ProjectChange], *, volatile: set[str]) -> Response:
        project = self.project(Capability.PROJECT_CHANGE)
        body = request.data
        if isinstance(body, dict):
            body = changeable_part(body, render_project(project, request), volatile=volatile)
        serializer = shape(data=body)
        serializer.is_valid(raise_exception=True)
        plan = serializer.validated_data.pop("plan", None)
        if plan is not None and plan != project.plan.slug:
            if serializer.validated_data and shape is not ProjectReplace:
                raise Invalid.field("plan", "invalid", "Change the plan in a request of its own.")
            operation = plan_change(principal=self.principal, project=project, plan=plan)
            return self.answer(request, project.pk, operation, 200)
        _, operation = project_update(
            principal=self.principal, project=project, changes=dict(serializer.validated_data)
        )
        return self.answer(request, project.pk, operation, 200)

    @extend_schema(
        operation_id="projects_delete",
        parameters=[
            OpenApiParameter("purge", bool, description="Remove server and data at once, for good."),
            OpenApiParameter("confirm", str, description="With `purge`: the project's slug."),
            OpenApiParameter(
                "final_backup", bool,
                description="Missing: a final backup is taken and verified first, where one can be. `false`: without it, also "
                "for a deletion that waits for it. `true`: 409 where none can be taken.",
            ),
        ],
        responses={202: AcceptedProject, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def delete(self, request: Request, pk: UUID) -> Response:
        """Into the recycle bin: stopped and out of reach, kept until `recycle_until`. With `purge=true&confirm=<slug>`
        server and data are removed for good; backups stay for the plan's days. Always accepted, unless protected: a
        running operation is asked to cancel."""
        purge, final_backup = flag(request, "purge"), flag(request, "final_backup")
        project = self.project(Capability.PROJECT_PURGE if purge else Capability.PROJECT_DELETE)
        if purge:
            confirm = request.query_params.get("confirm")
            check_confirm(project, confirm)
            operation = project_purge(
                principal=self.principal, project=project, confirm=confirm, final_backup=final_backup
            )
        else:
            operation = project_delete(principal=self.principal, project=project, final_backup=final_backup)
        return self.answer(request, project.pk, operation, 202)


def changeable_part(body: dict[str, Any], shown: dict[str, Any], *, volatile: set[str]) -> dict[str, Any]:
    """The body without what is sent along as it was read; anything else that can't be changed is refused by name."""
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name == "plan":
            if value != shown[name]:
                kept[name] = value
        elif name in CHANGEABLE or name not in shown:
            kept[name] = value
        elif name not in volatile and value != shown[name]:
            raise Invalid.field(name, "read_only", f"Only these can be changed: {', '.join(sorted(CHANGEABLE))}.")
    limits = kept.get("limits")
    if isinstance(limits, dict) and limits.get("storage_bytes") == shown["limits"]["storage_bytes"]:
        kept["limits"] = {name: value for name, value in limits.items() if name != "storage_bytes"}
    return kept


@extend_schema(tags=["projects"])
class ActionView(ProjectScoped, generics.GenericAPIView[Project]):
    queryset = Project.objects.none()
    serializer_class = ProjectSerializer

    @extend_schema(
        operation_id="projects_action", parameters=[IDEMPOTENCY_KEY], request=ActionInput, examples=ACTION_EXAMPLES,
        responses={202: AcceptedProject, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Start, stop, restart, rotate the password, undelete, or retry what failed. One that makes no sense now:
        409 `action_not_allowed`; while another operation runs: 409 `operation_in_progress`."""
        wanted_action = request.data.get("action") if isinstance(request.data, dict) else None
        undelete = wanted_action == "undelete"
        project = self.project(Capability.PROJECT_DELETE if undelete else Capability.PROJECT_ACT)
        wanted = parsed(ActionInput, request).validated_data

        def make() -> tuple[int, dict[str, str]]:
            operation = project_action(
                principal=self.principal, project=project, action=wanted["action"], new_name=wanted.get("name"),
                end_sessions=wanted["end_sessions"],
            )  # fmt: skip
            return 202, {"operation": str(operation.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            operation = operation_of(resource)
            if operation is None:
                raise NotFound
            return self.answer(request, project.pk, operation, status)

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)
