//! Where a server is, in the two forms that programs take: a configuration of tokio-postgres, and a URL.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};

use anyhow::{Context, Result, bail};
use tokio_postgres::Config;
use tokio_postgres::config::Host;
use uuid::Uuid;

/// A listener on a free port of 127.0.0.1.
///
/// Not simply on port 0: that gives a port from the range that outgoing connections take theirs from. One of
/// those would sooner or later sit on the port of a server that is down for a moment, which then could not
/// come back.
pub(crate) fn listener() -> Result<TcpListener> {
    const FIRST: u128 = 10_000;
    const LAST: u128 = 32_000; // The range of Linux starts at 32,768.
    for _ in 0..100 {
        let port = u16::try_from(FIRST + Uuid::new_v4().as_u128() % (LAST - FIRST))?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener);
        }
    }
    bail!("there is no free port: 100 were taken")
}

/// A port that was free a moment ago. Whoever listens on it next must expect to find it taken, and try
/// another.
pub(crate) fn free_port() -> Result<u16> {
    Ok(listener()?.local_addr()?.port())
}

/// `config`, but at another address: hosts can only be added to a configuration, so the rest is copied.
pub(crate) fn pointed_at(config: &Config, address: SocketAddr) -> Config {
    let mut moved = Config::new();
    if let Some(user) = config.get_user() {
        moved.user(user);
    }
    if let Some(password) = config.get_password() {
        moved.password(password);
    }
    if let Some(dbname) = config.get_dbname() {
        moved.dbname(dbname);
    }
    if let Some(options) = config.get_options() {
        moved.options(options);
    }
    if let Some(name) = config.get_application_name() {
        moved.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        moved.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        moved.tcp_user_timeout(*timeout);
    }
    moved
        .host(address.ip().to_string())
        .port(address.port())
        .ssl_mode(config.get_ssl_mode())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    moved
}

/// Address of the first host of `config`.
pub(crate) fn socket_addr(config: &Config) -> Result<SocketAddr> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let found = match (config.get_hostaddrs().first(), config.get_hosts().first()) {
        (Some(ip), _) => Some(SocketAddr::new(*ip, port)),
        (None, Some(Host::Tcp(host))) => {
            (host.as_str(), port).to_socket_addrs().with_context(|| format!("cannot resolve {host}"))?.next()
        }
        (None, Some(Host::Unix(path))) => bail!("{} is a socket, not a TCP address", path.display()),
        (None, None) => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
    };
    found.context("the host has no address")
}

/// `config` as a URL that tokio-postgres, libpq and everything built on them read: user, password, host,
/// port, database. What else it may hold stays behind.
pub(crate) fn url(config: &Config) -> String {
    let mut url = String::from("postgresql://");
    if let Some(user) = config.get_user() {
        url.push_str(&escaped(user.as_bytes()));
        if let Some(password) = config.get_password() {
            url.push(':');
            url.push_str(&escaped(password));
        }
        url.push('@');
    }
    let hosts = config.get_hosts().iter().enumerate().map(|(nth, host)| {
        let ports = config.get_ports();
        let port = ports.get(nth).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{port}"),
            Host::Tcp(host) => format!("{host}:{port}"),
            Host::Unix(path) => format!("{}:{port}", escaped(path.as_os_str().as_encoded_bytes())),
        }
    });
    url.push_str(&hosts.collect::<Vec<_>>().join(","));
    if let Some(dbname) = config.get_dbname() {
        url.push('/');
        url.push_str(&escaped(dbname.as_bytes()));
    }
    url
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_what_the_configuration_says() {
        let check = |text: &str| {
            let config: Config = text.parse().unwrap();
            assert_eq!(url(&config).parse::<Config>().unwrap(), config, "{text} became {}", url(&config));
        };
        check("postgresql://postgres@127.0.0.1:5433/postgres");
        check("postgresql://a%40b:p%2F%3A%3F@db.example:1,other:2/x%20y");
        check("host=/tmp/some/where port=7 user=me dbname=d");
    }

    #[test]
    fn a_configuration_pointed_elsewhere_keeps_the_rest() {
        let config: Config =
            "host=db user=u password=p dbname=d application_name=a options='-c x=y'".parse().unwrap();
        let moved = pointed_at(&config, ([127, 0, 0, 1], 9).into());
        assert_eq!(url(&moved), "postgresql://u:p@127.0.0.1:9/d");
        assert_eq!((moved.get_application_name(), moved.get_options()), (Some("a"), Some("-c x=y")));
    }
}
