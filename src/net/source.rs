//! Source of a connection: the one rule by which connections and memory are shared between clients.

use std::net::IpAddr;

/// The client whose connections and bodies are counted together; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// This machine, where a proxy may stand for everybody.
    Local,
    /// An IPv4 address, or a /64 network of IPv6: it belongs to one customer.
    Remote(IpAddr),
}

impl Source {
    /// Source of a connection from `peer` that came in at the address `local`.
    pub fn of(peer: IpAddr, local: Option<IpAddr>) -> Self {
        let peer = peer.to_canonical();
        // A client on this machine may use any address of the machine; then both ends are the same.
        if peer.is_loopback() || local.is_some_and(|local| local.to_canonical() == peer) {
            return Self::Local;
        }
        Self::Remote(match peer {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            v4 => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_counted_by_its_network() {
        let source = |text: &str| Source::of(text.parse().unwrap(), Some("192.0.2.7".parse().unwrap()));
        assert_eq!(source("2001:db8::1"), source("2001:db8::2:3:4:5"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        for own in ["::1", "127.8.0.1", "192.0.2.7", "::ffff:192.0.2.7"] {
            assert_eq!(source(own), Source::Local, "{own}");
        }
    }
}
