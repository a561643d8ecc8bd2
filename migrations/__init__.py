"""The database schema over time, for alembic."""
