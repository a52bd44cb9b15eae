"""The declaration of handlers and of Dramatiq actors whose messages join the transaction."""
