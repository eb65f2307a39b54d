"""Organizations, their members, invitations and audit log."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import services
from accounts.api.base import PrincipalMixin
from accounts.api.filters import AuditEventFilter
from accounts.api.pagination import AuditEventPagination
from accounts.api.serializers import (
    AuditEventSerializer,
    InvitationAcceptSerializer,
    InvitationCreatedSerializer,
    InvitationCreateSerializer,
    InvitationSerializer,
    MemberSerializer,
    MemberUpdateSerializer,
    OrganizationCreateSerializer,
    OrganizationSerializer,
    OrganizationUpdateSerializer,
)
from accounts.models import AuditEvent, Invitation, Membership, Organization
from accounts.permissions import Capability, require
from novastack.common.api import SecretResponse, idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY

REF = OpenApiParameter("ref", str, OpenApiParameter.PATH, description="Slug or id.")


class OrganizationScoped(PrincipalMixin):
    """Views below `organizations/{ref}/`: the organization is fetched by who asks, then the capability is checked."""

    kwargs: dict[str, Any]

    def organization(self, capability: Capability) -> Organization:
        found: Organization | None = (
            Organization.objects.for_principal(self.principal).by_ref(self.kwargs["ref"]).first()
        )
        if found is None:
            raise NotFound
        require(self.principal, found, capability)
        return found


@extend_schema(tags=["organizations"], parameters=[REF])
@extend_schema_view(
    list=extend_schema(parameters=[OpenApiParameter("ref", exclude=True, location=OpenApiParameter.PATH)]),
    create=extend_schema(parameters=[OpenApiParameter("ref", exclude=True, location=OpenApiParameter.PATH),
                                     IDEMPOTENCY_KEY],
                         request=OrganizationCreateSerializer, responses={201: OrganizationSerializer}),
    update=extend_schema(request=OrganizationUpdateSerializer, responses={200: OrganizationSerializer}),
    partial_update=extend_schema(request=OrganizationUpdateSerializer, responses={200: OrganizationSerializer}),
)  # fmt: skip
class OrganizationViewSet(OrganizationScoped, mixins.ListModelMixin, viewsets.GenericViewSet[Organization]):
    """The organizations of the caller."""

    queryset = Organization.objects.none()
    serializer_class = OrganizationSerializer
    lookup_field = "ref"
    lookup_value_converter = "slug"
    search_fields = ["name", "slug"]
    ordering_fields = ["name", "created_at"]
    ordering = "name"

    def get_queryset(self) -> QuerySet[Organization]:
        if getattr(self, "swagger_fake_view", False):
            return Organization.objects.none()
        ids = self.principal.organization_ids(Capability.ORG_VIEW)
        rows: QuerySet[Organization] = Organization.objects.filter(pk__in=ids).for_lists(self.principal)
        return rows

    def get_object(self) -> Organization:
        return self.organization(Capability.ORG_VIEW)

    def _answer(self, organization: Organization, **kwargs: Any) -> Response:
        self.principal.forget_memberships()
        return Response(OrganizationSerializer(self.get_queryset().get(pk=organization.pk)).data, **kwargs)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._answer(self.get_object())

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = OrganizationCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)

        def make() -> tuple[int, dict[str, str]]:
            made = services.organization_create(principal=self.principal, **serializer.validated_data)
            return 201, {"organization": str(made.pk)}

        def answer(status: int, resource: dict[str, str]) -> Response:
            self.principal.forget_memberships()
            organization = get_object_or_404(self.get_queryset(), pk=resource["organization"])
            location = f"{request._request.path}{organization.slug}/"
            return self._answer(organization, status=status, headers={"Location": location})

        return idempotent(request, organization_id=None, effect=make, rebuild=answer)

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        organization = self.organization(Capability.ORG_CHANGE)
        serializer = OrganizationUpdateSerializer(data=request.data, partial=kwargs.get("partial", False))
        serializer.is_valid(raise_exception=True)
        if serializer.validated_data:
            services.organization_update(
                principal=self.principal, organization=organization, **serializer.validated_data
            )
        return self._answer(organization)

    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.update(request, *args, **{**kwargs, "partial": True})

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """409 while it has projects, also recycled ones, and for a personal one."""
        services.organization_delete(principal=self.principal, organization=self.organization(Capability.ORG_DELETE))
        return Response(status=204)


@extend_schema(tags=["organizations"], parameters=[REF])
class MemberListView(OrganizationScoped, ListAPIView[Membership]):
    queryset = Membership.objects.none()
    serializer_class = MemberSerializer
    search_fields = ["user__email", "user__full_name"]
    ordering_fields = ["created_at", "role", "user__email"]
    ordering = "created_at"
    filterset_fields = ["role"]

    def get_queryset(self) -> QuerySet[Membership]:
        if getattr(self, "swagger_fake_view", False):
            return Membership.objects.none()
        return Membership.objects.filter(organization=self.organization(Capability.MEMBER_VIEW)).select_related("user")


@extend_schema(tags=["organizations"], parameters=[REF])
class MemberView(OrganizationScoped, APIView):
    @extend_schema(operation_id="organizations_members_retrieve", responses={200: MemberSerializer})
    def get(self, request: Request, ref: str, user_id: UUID) -> Response:
        organization = self.organization(Capability.MEMBER_VIEW)
        rows = Membership.objects.filter(organization=organization).select_related("user")
        return Response(MemberSerializer(get_object_or_404(rows, user_id=user_id)).data)

    @extend_schema(operation_id="organizations_members_update", request=MemberUpdateSerializer,
                   responses={200: MemberSerializer})  # fmt: skip
    def patch(self, request: Request, ref: str, user_id: UUID) -> Response:
        """Change the role. 409 `last_owner` when nobody would be left to own it."""
        organization = self.organization(Capability.MEMBER_MANAGE)
        serializer = MemberUpdateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        membership = services.member_change_role(
            principal=self.principal, organization=organization, user_id=user_id, **serializer.validated_data
        )
        return Response(MemberSerializer(membership).data)

    @extend_schema(operation_id="organizations_members_remove", responses={204: None})
    def delete(self, request: Request, ref: str, user_id: UUID) -> Response:
        """Remove a member, or leave (one's own id)."""
        services.member_remove(
            principal=self.principal, organization=self.organization(Capability.ORG_VIEW), user_id=user_id
        )
        return Response(status=204)


@extend_schema(tags=["organizations"], parameters=[REF])
class InvitationListView(OrganizationScoped, ListAPIView[Invitation]):
    queryset = Invitation.objects.none()
    serializer_class = InvitationSerializer
    search_fields = ["email"]
    ordering_fields = ["created_at", "expires_at"]

    def get_queryset(self) -> QuerySet[Invitation]:
        if getattr(self, "swagger_fake_view", False):
            return Invitation.objects.none()
        organization = self.organization(Capability.MEMBER_MANAGE)
        return Invitation.objects.filter(organization=organization, accepted_at=None, revoked_at=None).select_related(
            "invited_by"
        )

    @extend_schema(operation_id="organizations_invitations_create", parameters=[IDEMPOTENCY_KEY],
                   request=InvitationCreateSerializer, responses={201: InvitationCreatedSerializer})  # fmt: skip
    def post(self, request: Request, ref: str) -> Response:
        """Invite an address. `link` is in this answer only; with SMTP it is mailed as well."""
        organization = self.organization(Capability.MEMBER_MANAGE)
        serializer = InvitationCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        base_url = request._request.build_absolute_uri("/").rstrip("/")
        shown: list[str] = []

        def make() -> tuple[int, dict[str, str]]:
            invitation, clear = services.member_invite(
                principal=self.principal, organization=organization, base_url=base_url, **serializer.validated_data
            )
            shown.append(f"{base_url}/invitations/{clear}/")
            return 201, {"invitation": str(invitation.pk)}

        def answer(status: int, resource: dict[str, str]) -> Response:
            rows = Invitation.objects.filter(organization=organization).select_related("invited_by")
            body = dict(InvitationSerializer(get_object_or_404(rows, pk=resource["invitation"])).data)
            body |= {"link": shown[0]} if shown else {"link": None, "already_shown": True}
            return SecretResponse(body, status=status)

        return idempotent(request, organization_id=organization.pk, effect=make, rebuild=answer)


@extend_schema(tags=["organizations"], parameters=[REF])
class InvitationView(OrganizationScoped, APIView):
    @extend_schema(operation_id="organizations_invitations_withdraw", responses={204: None})
    def delete(self, request: Request, ref: str, pk: UUID) -> Response:
        organization = self.organization(Capability.MEMBER_MANAGE)
        invitation = get_object_or_404(Invitation.objects.filter(organization=organization), pk=pk)
        services.invitation_revoke(principal=self.principal, invitation=invitation)
        return Response(status=204)


class InvitationAcceptView(PrincipalMixin, GenericAPIView[Any]):
    serializer_class = InvitationAcceptSerializer

    @extend_schema(operation_id="invitations_accept", tags=["organizations"], parameters=[IDEMPOTENCY_KEY],
                   request=InvitationAcceptSerializer, responses={200: OrganizationSerializer})  # fmt: skip
    def post(self, request: Request) -> Response:
        """Join with the token of an invitation's link, as the person it was sent to."""
        serializer = InvitationAcceptSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)

        def make() -> tuple[int, dict[str, str]]:
            membership = services.invitation_accept(principal=self.principal, clear=serializer.validated_data["token"])
            return 200, {"organization": str(membership.organization_id)}

        def answer(status: int, resource: dict[str, str]) -> Response:
            self.principal.forget_memberships()
            rows = Organization.objects.for_principal(self.principal).for_lists(self.principal)
            found = get_object_or_404(rows, pk=resource["organization"])
            return Response(OrganizationSerializer(found).data, status=status)

        return idempotent(request, organization_id=None, effect=make, rebuild=answer)


@extend_schema(tags=["organizations"], parameters=[REF])
class AuditEventListView(OrganizationScoped, ListAPIView[AuditEvent]):
    """Newest first. `?after=<sequence>` polls forward, oldest first."""

    queryset = AuditEvent.objects.none()
    serializer_class = AuditEventSerializer
    pagination_class = AuditEventPagination
    filterset_class = AuditEventFilter
    ordering_fields: list[str] = []
    search_fields = ["target", "actor_label", "project_name", "action"]

    def get_queryset(self) -> QuerySet[AuditEvent]:
        if getattr(self, "swagger_fake_view", False):
            return AuditEvent.objects.none()
        rows: QuerySet[AuditEvent] = AuditEvent.objects.for_organization(self.organization(Capability.AUDIT_VIEW).pk)
        return rows
