"""The shop's pages."""

from django.urls import path

from . import views

app_name = "shop"
urlpatterns = [
    path("", views.order_list, name="orders"),
    path("orders/new/", views.order_new, name="order-new"),
    path("orders/<int:pk>/", views.order_detail, name="order"),
    path("orders/<int:pk>/move/", views.order_move, name="order-move"),
    path("stock/", views.product_list, name="products"),
    path("office/", views.office, name="office"),
    path("office/report/", views.report_new, name="report-new"),
]
