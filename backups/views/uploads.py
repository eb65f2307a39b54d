"""“Upload a dump”: a form with a file, which goes to the storage while it comes. Its script only shows how far it is."""

from __future__ import annotations

import io
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler, StopUpload
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_http_methods

from accounts.permissions import Capability, Principal
from backups.forms import UploadForm
from backups.services.uploads import Intake, UploadInterrupted, drain
from backups.views.common import question
from novastack.common.errors import PermissionDenied, Problem
from novastack.common.templatetags.ui import size_text
from projects import registry
from projects.models import Project
from projects.views.common import add_problem, project_for
from projects.views.detail import header_context


class _Receiver(FileUploadHandler):
    """Hands the form's file on as it comes: it is never whole in memory, nor in a file of its own."""

    chunk_size = 1 << 20

    def __init__(self, request: HttpRequest, principal: Principal, project: Project) -> None:
        super().__init__(request)
        self._principal, self._project = principal, project
        self.intake: Intake | None = None
        self.problem: Problem | None = None

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        if self.intake is not None:
            raise StopUpload(connection_reset=True)
        try:
            self.intake = Intake(self._principal, self._project, filename=self.file_name or "")
        except Problem as problem:
            self._stop(problem)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        try:
            if self.intake is not None:
                self.intake.feed(raw_data)
        except Problem as problem:
            self._stop(problem)

    def file_complete(self, file_size: int) -> UploadedFile:
        return UploadedFile(file=io.BytesIO(), name=self.file_name, size=file_size)

    def _stop(self, problem: Problem) -> None:
        self.problem = problem
        raise StopUpload(connection_reset=True)

    def close(self) -> None:
        """Whatever was not begun is gone."""
        if self.intake is not None:
            self.intake.discard()


@csrf_exempt  # looked at by `_form`: before that nobody may have read the form, since its file goes where it belongs at once
@login_required
@require_http_methods(["GET", "POST"])
def upload_new(request: HttpRequest, project_id: UUID) -> HttpResponse:
    principal, project = project_for(request, project_id, Capability.PROJECT_ACT)
    receiver = _Receiver(request, principal, project)
    if request.method == "POST":
        request.upload_handlers = [receiver]
    try:
        return _form(request, principal, project, receiver)
    finally:
        receiver.close()
        if receiver.problem is not None:
            drain(getattr(request, "_stream", None))


@csrf_protect
def _form(request: HttpRequest, principal: Principal, project: Project, receiver: _Receiver) -> HttpResponse:
    form = UploadForm(request.POST if request.method == "POST" else None)
    if request.method == "POST":
        try:
            if receiver.problem is not None:
                raise receiver.problem
            if receiver.intake is None:
                form.add_error(None, "Choose a file.")
            elif form.is_valid():
                return _begun(request, project, receiver.intake, form.cleaned_data["label"])
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        if request.headers.get("X-Requested-With") == "fetch":
            return JsonResponse(
                {"detail": " ".join(str(e) for errors in form.errors.values() for e in errors)}, status=400
            )
    engine = registry.engine(project.engine)
    context = header_context(principal, project) | {
        "form": form, "formats": engine.upload_formats, "most": size_text(_most()),
        "taken_by": UPLOAD_WORDS.get(project.engine, ""),
    }  # fmt: skip
    return question(request, "upload", context)


UPLOAD_WORDS = {
    "postgresql": "a file of pg_dump, in custom or tar format or as SQL",
    "mysql": "the SQL of mysqldump",
    "mariadb": "the SQL of mariadb-dump or mysqldump",
}


def _begun(request: HttpRequest, project: Project, intake: Intake, label: str) -> HttpResponse:
    stream = getattr(request, "_stream", None)
    if getattr(stream, "_pos", 0) < getattr(stream, "limit", 0):
        raise UploadInterrupted("The file did not come whole. Nothing of it was kept.")
    intake.receive()
    with transaction.atomic():
        backup = intake.begin(label=label)
    intake.close()
    messages.info(request, f"{backup.label or 'The file'} came whole. It is now run in a throw-away server.")
    if request.headers.get("X-Requested-With") == "fetch":
        return JsonResponse({"url": reverse("backups:tab", args=[project.pk])}, status=202)
    return redirect("backups:tab", project.pk)


def _most() -> int:
    from django.conf import settings

    return int(settings.NOVASTACK_UPLOAD_BYTES)
