//! Objects in S3-compatible storage: the client, URIs, and the embedded server with its crash-safe store.
