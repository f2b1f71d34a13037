//! The S3 server inside: `s3s` speaks the protocol and checks signatures, the store behind it is
//! our own and loses nothing it acknowledged.
