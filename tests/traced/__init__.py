"""A project with OpenTelemetry and Sentry, whose processes write spans and events to files."""
