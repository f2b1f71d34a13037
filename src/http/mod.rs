//! The wire: connections, authentication, replies, pages. It knows no operation.
