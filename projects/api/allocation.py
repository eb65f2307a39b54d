"""`database/`: the allocation service. The same `instance_id` always gets the same database."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import generics, serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView

from accounts.api.base import PrincipalMixin
from accounts.permissions import Capability, allows, principal_from
from accounts.services import organization_for
from novastack.common.api import SecretResponse, idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import Brief, parsed, render_project
from projects.api.fields import Flag, Input, Text
from projects.api.inputs import LONG
from projects.api.operation_outputs import OperationError
from projects.api.outputs import ProjectSerializer, operation_brief
from projects.models import Allocation, Project
from projects.services.allocation import (
    AllocationRequest,
    allocate,
    allocation_state,
    pool_rooms,
    service_status,
)
from projects.services.connections import connection_masked, connection_reveal, render_connection

EXAMPLES = [
    OpenApiExample("The least", value={"instance_id": "odoo-4711"}, request_only=True),
    OpenApiExample(
        "More of it", request_only=True,
        value={"instance_id": "odoo-4711", "engine": "postgresql", "version": "17", "plan": "small", "region": "local"},
    ),
]  # fmt: skip
RETRY_AFTER = OpenApiParameter(
    "Retry-After", int, OpenApiParameter.HEADER, response=[202], description="Seconds; as `retry_after_seconds`."
)
SECRETS = ("password", "uri", "jdbc_url", "env", "snippets")


class AllocationInput(Input):
    instance_id = Text(
        max_length=LONG,
        help_text="Yours: 1 to 128 of `A-Z a-z 0-9 . _ : @ / + -`, beginning with a letter or digit. One database each, "
        "in each organization.",
    )
    plan = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; see `plans/`.")
    engine = Text(required=False, allow_null=True, max_length=LONG, help_text="`postgresql` if missing.")
    version = Text(required=False, allow_null=True, max_length=LONG, help_text="The engine's default one if missing.")
    region = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; see `regions/`.")
    organization = Text(
        required=False, allow_null=True, max_length=LONG,
        help_text="Slug or id. Missing: the token's, else your default one.",
    )  # fmt: skip
    name = Text(
        required=False, allow_null=True, max_length=LONG,
        help_text="Of the project that is made; the instance's id if missing. Ignored for one that is there.",
    )  # fmt: skip
    bootstrap_schema = Flag(
        required=False, default=True, help_text="As in `projects/`, when it is made. Ignored for one that is there."
    )

    def request(self, *, dedicated: bool) -> AllocationRequest:
        values: dict[str, Any] = {name: value for name, value in self.validated_data.items() if name != "organization"}
        return AllocationRequest(**values, dedicated=dedicated)


class AllocatedConnection(serializers.Serializer[Any]):
    """As of `projects/{id}/connection`. Without the right to connect all that shows the password is null."""

    host = serializers.CharField()
    port = serializers.IntegerField()
    database = serializers.CharField()
    username = serializers.CharField()
    password = serializers.CharField(allow_null=True)
    tls = serializers.BooleanField(help_text="The server speaks TLS; `uri` and snippets use it.")
    ca_url = serializers.URLField(allow_null=True, help_text="The CA's certificate, to verify the server with.")
    uri = serializers.CharField(allow_null=True)
    jdbc_url = serializers.CharField(allow_null=True)
    env = serializers.DictField(child=serializers.CharField(), allow_null=True)
    snippets = serializers.DictField(child=serializers.CharField(), allow_null=True)


class AllocatedOutput(serializers.Serializer[Any]):
    """The database can be used."""

    status = serializers.ChoiceField(choices=[("allocated", "allocated")])
    instance_id = serializers.CharField()
    project = ProjectSerializer()
    connection = AllocatedConnection()


class AllocatingOutput(serializers.Serializer[Any]):
    """It is being made. Wait for the operation (`operations/{id}/?wait=30`), or ask the same again later."""

    status = serializers.ChoiceField(choices=[("provisioning", "provisioning")])
    instance_id = serializers.CharField()
    project = ProjectSerializer()
    operation = Brief()
    retry_after_seconds = serializers.IntegerField()
    previous_error = OperationError(allow_null=True, help_text="Why the attempt before failed, when this is another.")


class AllocateView(PrincipalMixin, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    serializer_class = AllocatedOutput
    dedicated = False

    def allocated(self, request: Request) -> Response:
        ref = request.data.get("organization") if isinstance(request.data, dict) else None
        organization = organization_for(
            self.principal, ref if isinstance(ref, str) else None, capability=Capability.PROJECT_CREATE
        )
        wanted = parsed(AllocationInput, request).request(dedicated=self.dedicated)

        def make() -> tuple[int, dict[str, str]]:
            made = allocate(principal=self.principal, organization=organization, request=wanted)
            return 202, {"allocation": str(made.pk)}

        def rebuild(_: int, resource: dict[str, str]) -> Response:
            """How it stands now, also for a replay: who asks again with the same key waits for the database, too."""
            made = Allocation.objects.filter(organization=organization, pk=resource["allocation"]).first()
            if made is None:
                raise NotFound("The database of this instance is gone; ask with another Idempotency-Key.")
            return self.answer(request, made)

        return idempotent(request, organization_id=organization.pk, effect=make, rebuild=rebuild)

    def answer(self, request: Request, allocation: Allocation) -> Response:
        state = allocation_state(allocation)
        body: dict[str, Any] = {
            "status": "allocated" if state.ready else "provisioning",
            "instance_id": allocation.instance_id,
            "project": render_project(state.project, request, operation=state.operation),
        }
        if state.ready:
            return SecretResponse(body | {"connection": self.connection(request, state.project)})
        body |= {
            "operation": operation_brief(state.operation, request),
            "retry_after_seconds": state.retry_after_seconds,
            "previous_error": state.previous_error,
        }
        return SecretResponse(body, status=202, headers={"Retry-After": str(state.retry_after_seconds)})

    def connection(self, request: Request, project: Project) -> dict[str, Any]:
        """With the password, audited, for who may connect; else without anything that shows it."""
        if allows(self.principal, project.organization_id, Capability.CONNECT):
            info = connection_reveal(principal=self.principal, project=project, purpose="allocation")
            shown = render_connection(info)
        else:
            info = connection_masked(project)
            shown = render_connection(info) | dict.fromkeys(SECRETS)
        return shown | {"ca_url": reverse("ca", request=request) if info.tls else None}


def described(name: str) -> Any:
    return extend_schema(
        tags=["database"], operation_id=name, parameters=[IDEMPOTENCY_KEY, RETRY_AFTER], request=AllocationInput,
        examples=EXAMPLES,
        responses={
            200: OpenApiResponse(AllocatedOutput, "The database can be used."),
            202: OpenApiResponse(AllocatingOutput, "It is being made: wait, and ask again."),
            **problems(400, 403, 404, 409, 422),
        },
    )  # fmt: skip


class AllocationView(AllocateView):
    @described("database_allocate")
    def post(self, request: Request) -> Response:
        """The database of an instance, made when it is first asked for. Ask as often, and as many at a time, as you like:
        the same `instance_id` always gets the same one. 200 with `connection` once it is ready (the password needs the
        scope `connect`), until then 202 with `retry_after_seconds`. A failed attempt is made again by asking again, if that
        may help. 409: `allocation_mismatch` (it has another plan, engine … than asked for), `allocation_recycled`,
        `allocation_deleting`, `provisioning_failed`."""
        return self.allocated(request)


class DedicatedView(AllocateView):
    dedicated = True

    @described("database_provision_dedicated")
    def post(self, request: Request) -> Response:
        """As `allocate`, on a server of its own. An instance has one database: who was given one by `allocate` asks there
        (409 `allocation_mismatch`)."""
        return self.allocated(request)


class PoolRoomOutput(serializers.Serializer[Any]):
    engine = serializers.CharField()
    version = serializers.CharField()
    region = serializers.CharField()
    plan = serializers.CharField(help_text="Empty: any.")
    pools = serializers.IntegerField(help_text="That take databases now.")
    preparing = serializers.IntegerField()
    databases = serializers.IntegerField(help_text="On those that take databases.")
    max_databases = serializers.IntegerField()
    room = serializers.BooleanField(help_text="A database finds a place at once.")


class AllocationHealthOutput(serializers.Serializer[Any]):
    """Only operators see `pools`."""

    status = serializers.ChoiceField(
        choices=["healthy", "degraded"], help_text="`degraded`: what is asked for now waits for something that is away."
    )
    pools = PoolRoomOutput(many=True, required=False)


class AllocationHealthView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="database_health", tags=["database"], responses={200: AllocationHealthOutput, **problems()}
    )
    def get(self, request: Request) -> Response:
        """How the allocation service does. Always 200."""
        body: dict[str, Any] = {"status": service_status()}
        if request.user.is_authenticated and principal_from(request).is_operator:
            body["pools"] = PoolRoomOutput(pool_rooms(), many=True).data
        return Response(body, headers={"Cache-Control": "no-store"})
