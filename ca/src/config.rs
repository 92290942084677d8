//! The settings of `picket-ca run`.
//!
//! Promises: whatever this returns can be used as it is; every mistake is reported at once with its path. Leaves to
//! others: whether the files and addresses named here can be opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::TrustDomain;
use settings::{Document, Error, Noted, Section};
use telemetry::log::Format;

/// Shorter than this, renewal at two thirds leaves no time for a second attempt.
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(60);
/// Longer than this is no short-lived certificate: there is no revocation.
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86400);

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// `trustDomain`.
    pub trust_domain: TrustDomain,
    /// `dir`: keys and certificates, 0700.
    pub dir: PathBuf,
    /// `listen`.
    pub listen: SocketAddr,
    /// `dnsNames`: further names in the serving certificate.
    pub dns_names: Vec<String>,
    /// `leafLifetime`, 24 h by default.
    pub leaf_lifetime: Duration,
    /// `tokens.jwks`: the key set.
    pub token_keys: PathBuf,
    /// `tokens.issuer`.
    pub token_issuer: String,
    /// `tokens.audience`.
    pub token_audience: String,
    /// `admin`; no admin server without it.
    pub admin: Option<Admin>,
    /// `log.format`.
    pub log_format: Format,
    /// `log.level`.
    pub log_level: String,
}

/// Where the admin server listens.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `admin.address`.
    pub address: SocketAddr,
    /// `admin.socket`.
    pub socket: Option<PathBuf>,
}

impl Config {
    /// Reads the file and the variables `PICKET_…` over it.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::read(&Document::load(Some(path), "PICKET_", std::env::vars())?)
    }

    fn read(document: &Document) -> Result<Self, Error> {
        Ok(document.read(read)?)
    }
}

fn read(root: &Section<'_>) -> Result<Config, Noted> {
    let expected = "a trust domain such as demo.picket.dev";
    let trust_domain = root.required_with("trustDomain", expected, |value| value.text()?.parse().ok());
    let (dir, listen, dns_names) = (root.required("dir"), root.required("listen"), root.list("dnsNames"));
    let leaf_lifetime = root.default("leafLifetime", Duration::from_secs(86400));
    let bounds_checked = if (LEAF_LIFETIME_MIN..=LEAF_LIFETIME_MAX).contains(&leaf_lifetime) {
        Ok(())
    } else {
        Err(root.refuse("leafLifetime", "a duration from 1m to 720h"))
    };
    let tokens = root.section("tokens");
    let (token_keys, token_issuer) = (tokens.required("jwks"), tokens.required("issuer"));
    let token_audience = tokens.required("audience");
    let admin = root.optional_section("admin").map(|admin| read_admin(&admin)).transpose();
    let log = root.section("log");
    let log_format = log.one_of("format", &[("text", Format::Text), ("json", Format::Json)], Format::Text);
    let log_level = log.default("level", "info".to_owned());
    bounds_checked?;
    Ok(Config {
        trust_domain: trust_domain?,
        dir: dir?,
        listen: listen?,
        dns_names,
        leaf_lifetime,
        token_keys: token_keys?,
        token_issuer: token_issuer?,
        token_audience: token_audience?,
        admin: admin?,
        log_format,
        log_level,
    })
}

fn read_admin(section: &Section<'_>) -> Result<Admin, Noted> {
    let (address, socket) = (section.required("address"), section.optional("socket"));
    Ok(Admin { address: address?, socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::read(&Document::parse("ca.yaml", text, "PICKET_", [])?)
    }

    const GOOD: &str = "{trustDomain: td, dir: /x, listen: '127.0.0.1:0', tokens: {jwks: /k, issuer: i, audience: a}}";

    #[test]
    fn defaults_fill_what_is_not_said() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.leaf_lifetime, config.log_level.as_str()), (Duration::from_secs(86400), "info"));
        assert!(config.admin.is_none() && config.dns_names.is_empty());
    }

    #[test]
    fn mistakes_are_told_together() {
        let bad = GOOD.replace("td,", "TD, leafLifetime: 1s, lisen: x,").replace("issuer", "isuer");
        let text = parse(&bad).unwrap_err().to_string();
        for path in ["trustDomain", "leafLifetime", "lisen", "tokens.isuer", "tokens.issuer"] {
            assert!(text.contains(path), "{path}: {text}");
        }
    }
}
