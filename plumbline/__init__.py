"""The face of the project: the command line and the typed HTTP client."""
