from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

import outbox


def publish(request: HttpRequest, topic: str) -> HttpResponse:
    with transaction.atomic():
        event = outbox.publish(topic, {"n": 1})
    return HttpResponse(str(event.pk))


urlpatterns = [path("admin/", admin.site.urls), path("publish/<str:topic>/", publish)]
