"""All that touches Kombu and Celery."""
