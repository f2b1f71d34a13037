//! SQL for Postgres and SQLite: one query text for both, one file per table.
