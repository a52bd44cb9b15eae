"""The form that places an order."""

from collections.abc import Iterator
from typing import Any

from django import forms
from django.forms.boundfield import BoundField

from .models import Customer, Product

MAX_QUANTITY = 20


class OrderForm(forms.Form):
    """A customer, and a quantity of each product."""

    customer = forms.ModelChoiceField(Customer.objects.all(), empty_label="Choose a customer")
    roll_back = forms.BooleanField(
        required=False,
        label="Fail on purpose before the commit",
        help_text="The transaction is rolled back after the event was published: no order, no handler.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add a field for each product."""
        super().__init__(*args, **kwargs)
        self.products = list(Product.objects.all())
        for product in self.products:
            self.fields[_name(product)] = forms.IntegerField(
                label=product.name,
                required=False,
                min_value=0,
                max_value=MAX_QUANTITY,
                widget=forms.NumberInput(attrs={"placeholder": 0, "inputmode": "numeric"}),
            )

    def rows(self) -> Iterator[tuple[Product, BoundField]]:
        """Yield each product with its field, for the template."""
        for product in self.products:
            yield product, self[_name(product)]

    def clean(self) -> dict[str, Any]:
        """Refuse an order without products."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and not self.quantities():
            raise forms.ValidationError("Order at least one product.")
        return cleaned

    def quantities(self) -> dict[Product, int]:
        """Return the ordered quantities by product, sorted by id."""
        ordered = {product: self.cleaned_data.get(_name(product)) or 0 for product in self.products}
        return {
            product: quantity
            for product, quantity in sorted(ordered.items(), key=lambda item: item[0].pk)
            if quantity
        }


def _name(product: Product) -> str:
    return f"quantity_{product.pk}"
