//! Object storage from the outside: the client against our own server and against servers that are
//! not ours, and our own server against clients that are not ours.

mod boto3;
mod checks;
mod crash;
mod edges;
mod embedded;
mod flood;
mod outage;
mod servers;

mod uploads;
pub(crate) use servers::{Moto, not_run, sdk};
