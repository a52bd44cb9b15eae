"""The work of operators, for the commands, the admin and projects: statistics, retry, replay, pruning."""
