"""The command line, the Prefect flow, schedules and the shipped recipes."""
