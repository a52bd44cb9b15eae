"""Helpers of the tests: rows, the data flow in one process, child processes, brokers, and statements."""
