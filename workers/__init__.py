"""The processes of the service size: the Celery app, its tasks and its clock."""
