//! Starts the database, the object store, the API and the workers, and drains them on SIGTERM.
