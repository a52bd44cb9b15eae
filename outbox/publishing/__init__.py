"""From `publish()` to rows in the caller's transaction, and the notification of relays (brokers: `relay`)."""
