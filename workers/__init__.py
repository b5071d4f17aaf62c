"""Background processes for the service size; importing this package starts nothing."""
