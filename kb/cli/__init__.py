"""The command line: a client of the REST API, over the network or in this process."""
