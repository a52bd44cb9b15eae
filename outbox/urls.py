"""The endpoints for monitors: `path("outbox/", include("outbox.urls"))`."""

from django.urls import path

from outbox.endpoints import live, ready

app_name = "outbox"
urlpatterns = [
    path("live", live, name="live"),
    path("ready", ready, name="ready"),
]
