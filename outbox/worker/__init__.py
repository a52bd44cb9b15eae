"""The worker's part of a delivery: middleware, actor, transactional runs, poison messages."""
