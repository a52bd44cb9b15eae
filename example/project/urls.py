"""URLs: the shop at the root, the admin beside it."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("outbox/", include("outbox.urls")),
    path("", include("example.shop.urls")),
]
