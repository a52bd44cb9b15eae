"""The products and customers of a new shop."""

from .models import Customer, Product

OPENING_STOCK = 5_000
CUSTOMERS = 25
PRICES = {
    "Cast-iron pan": "39.00",
    "Chopping board": "24.50",
    "Coffee beans, 1 kg": "18.90",
    "Cotton apron": "21.00",
    "Enamel mug": "9.50",
    "Filter papers": "4.20",
    "Glass carafe": "27.80",
    "Hand grinder": "64.00",
    "Kitchen scales": "32.40",
    "Linen tea towel": "11.00",
    "Pour-over kettle": "58.00",
    "Wooden spoon": "6.30",
}


def stock_up() -> None:
    """Create the products and customers that do not exist yet."""
    existing = set(Product.objects.values_list("name", flat=True))
    # Only the new products, so that `bulk_created` reports no others.
    Product.objects.bulk_create(
        Product(name=name, price=price, stock=OPENING_STOCK)
        for name, price in PRICES.items()
        if name not in existing
    )
    Customer.objects.bulk_create(
        [Customer(name=f"Customer {number}") for number in range(1, CUSTOMERS + 1)],
        ignore_conflicts=True,
    )
