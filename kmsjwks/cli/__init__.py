"""The command line over the services: data on stdout, messages on stderr."""
