"""The write of an event with its deliveries: portable, by INSERT and by COPY."""
