//! The settings of `picket-ca run`.
//!
//! Promises: whatever this returns can be used as it is; every mistake is reported at once with its path. Leaves to
//! others: whether the files and addresses named here can be opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::TrustDomain;
use settings::{Document, Error, Noted, Scalar, Section, Setting};
use telemetry::log::Format;

use crate::attest::key_set::Expected;
use crate::lifecycle::Rules;
use crate::state::Seconds;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86400);
/// Enough for a renewal at two thirds and a second attempt within a network's worst moments. Nobody should run with it;
/// it is this short so that tests see whole rotations, which wait for the last old leaf.
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(10);
/// Longer than this is no short-lived certificate: the deny list would have to remember for as long.
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86400);
/// More is more than certificates can say.
const LIFETIME_MAX: Duration = Duration::from_secs(100 * 365 * 86400);

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// `trustDomain`.
    pub trust_domain: TrustDomain,
    /// `dir`: keys, certificates and state, 0700.
    pub dir: PathBuf,
    /// `listen`.
    pub listen: SocketAddr,
    /// `dnsNames`: further names in the serving certificate.
    pub dns_names: Vec<String>,
    /// `leafLifetime`, 24 h by default.
    pub leaf_lifetime: Duration,
    /// `renewWithin`: in which time proxies spread their renewals after a new issuer.
    pub renew_within: Duration,
    /// `issuer.directory`: an issuer from outside.
    pub issuer_directory: Option<PathBuf>,
    /// `issuer`, `root` and `rotation`.
    pub rules: Rules,
    /// `follow.streams`: how many proxies may follow the trust bundle at this process.
    pub streams_max: usize,
    /// `tokens.jwks`: the key set.
    pub token_keys: PathBuf,
    /// `tokens`: what tokens must say.
    pub tokens: Expected,
    /// `export`: where records go, if anywhere.
    pub export: Option<Export>,
    /// `admin.address`: probes and metrics over TCP.
    pub admin_address: Option<SocketAddr>,
    /// `admin.socket`: commands; in `dir` by default.
    pub admin_socket: PathBuf,
    /// `log.format`.
    pub log_format: Format,
    /// `log.level`.
    pub log_level: String,
}

/// A collector.
#[derive(Clone)]
pub struct Export {
    /// `https://host:port`, or `http://host:port` for clear text.
    pub endpoint: String,
    /// Roots of its certificate.
    pub roots: Option<PathBuf>,
    /// Headers of every call.
    pub headers: Vec<(String, String)>,
    /// How long a call may take.
    pub timeout: Duration,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// Bytes of records that may wait.
    pub queue_bytes: usize,
}

impl std::fmt::Debug for Export {
    /// Header values are often credentials: they are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
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
    let (dir, listen, dns_names) = (root.required::<PathBuf>("dir"), root.required("listen"), root.list("dnsNames"));
    let leaf_lifetime =
        between(root, "leafLifetime", DAY, LEAF_LIFETIME_MIN..=LEAF_LIFETIME_MAX, "a duration from 10s to 30d");
    let renew_within = (leaf_lifetime / 10).clamp(Duration::from_secs(1), 10 * MINUTE);
    let renew_within = root.default("renewWithin", renew_within);
    let issuer = root.section("issuer");
    let issuer_directory = issuer.optional("directory");
    let rules = read_rules(root, &issuer, leaf_lifetime, issuer_directory.is_some());
    let streams_max = at_least_one(&root.section("follow"), "streams", 20_000);
    let tokens = root.section("tokens");
    let (token_keys, tokens) = (tokens.required("jwks"), read_tokens(&tokens));
    let export = root.optional_section("export").map(|export| read_export(&export)).transpose();
    let admin = root.section("admin");
    let (admin_address, admin_socket) = (admin.optional("address"), admin.optional("socket"));
    let log = root.section("log");
    let log_format = log.one_of("format", &[("text", Format::Text), ("json", Format::Json)], Format::Text);
    let log_level = log.default("level", "info".to_owned());
    let dir = dir?;
    Ok(Config {
        trust_domain: trust_domain?,
        listen: listen?,
        dns_names,
        leaf_lifetime,
        renew_within,
        issuer_directory,
        rules,
        streams_max,
        token_keys: token_keys?,
        tokens: tokens?,
        export: export?,
        admin_address,
        admin_socket: admin_socket.unwrap_or_else(|| dir.join("admin.sock")),
        dir,
        log_format,
        log_level,
    })
}

/// A duration with bounds; outside of them it is a mistake, and `default` goes on.
fn between(
    section: &Section<'_>,
    name: &str,
    default: Duration,
    bounds: std::ops::RangeInclusive<Duration>,
    expected: &str,
) -> Duration {
    let read = |scalar: Scalar<'_>| Duration::from_scalar(scalar).filter(|found| bounds.contains(found));
    section.optional_with(name, expected, read).unwrap_or(default)
}

fn at_least_one(section: &Section<'_>, name: &str, default: usize) -> usize {
    let read = |scalar: Scalar<'_>| usize::from_scalar(scalar).filter(|found| *found > 0);
    section.optional_with(name, "a whole number from 1", read).unwrap_or(default)
}

fn read_rules(root: &Section<'_>, issuer: &Section<'_>, leaf_lifetime: Duration, brought: bool) -> Rules {
    // Under an issuer that lives no longer than two leaves, most leaves would be cut at its end.
    let least = leaf_lifetime * 2;
    let expected = "a duration of at least two leafLifetime and at most 36500d";
    let issuer_lifetime = between(issuer, "lifetime", (365 * DAY).max(least), least..=LIFETIME_MAX, expected);
    let percent = |scalar: Scalar<'_>| u8::from_scalar(scalar).filter(|found| (1..=90).contains(found));
    let percent = issuer.optional_with("rotateAtPercent", "a whole number from 1 to 90", percent).unwrap_or(66);
    let section = root.section("root");
    let expected = "a duration of at least issuer.lifetime and at most 36500d";
    let default = (3650 * DAY).max(issuer_lifetime);
    let root_lifetime = between(&section, "lifetime", default, issuer_lifetime..=LIFETIME_MAX, expected);
    // A fifth of its life: an issuer always has its full time below it, and a stage that is stuck has years.
    let rotate_below = root_lifetime / 5;
    let limits = Duration::ZERO..=root_lifetime - root_lifetime / 10;
    let expected = "a duration of at most nine tenths of root.lifetime";
    let root_rotate_below = between(&section, "rotateBelow", rotate_below, limits, expected);
    let rotation = root.section("rotation");
    Rules {
        leaf_lifetime: seconds(leaf_lifetime),
        issuer_lifetime: seconds(issuer_lifetime),
        issuer_rotate_percent: percent,
        root_lifetime: seconds(root_lifetime),
        root_rotate_below: seconds(root_rotate_below),
        absence_window: seconds(rotation.default("absenceWindow", 10 * MINUTE)),
        stuck_after: seconds(rotation.default("stuckAfter", 60 * MINUTE)),
        brought,
    }
}

fn seconds(duration: Duration) -> Seconds {
    Seconds::try_from(duration.as_secs()).unwrap_or(Seconds::MAX)
}

fn read_tokens(section: &Section<'_>) -> Result<Expected, Noted> {
    let (issuer, audience) = (section.required("issuer"), section.required("audience"));
    Ok(Expected {
        lifetime_max: section.default("maxLifetime", DAY),
        pod_required: section.default("podRequired", true),
        issuer: issuer?,
        audience: audience?,
    })
}

fn read_export(section: &Section<'_>) -> Result<Export, Noted> {
    let is_url = |text: &&str| text.starts_with("https://") || text.starts_with("http://");
    let expected = "https://host:port, or http://host:port for clear text";
    let endpoint =
        section.required_with("endpoint", expected, |scalar| scalar.text().filter(is_url).map(str::to_owned));
    let (headers, resource) = (section.map::<String>("headers"), section.map::<String>("resource"));
    let queue = section.default("queueBytes", settings::Bytes(4 << 20));
    Ok(Export {
        roots: section.optional("roots"),
        headers: headers.into_iter().collect(),
        timeout: section.default("timeout", Duration::from_secs(10)),
        resource: resource.into_iter().collect(),
        queue_bytes: usize::try_from(queue.0).unwrap_or(usize::MAX),
        endpoint: endpoint?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::read(&Document::parse("ca.yaml", text, "PICKET_", [])?)
    }

    const GOOD: &str = "{trustDomain: td, dir: /x, listen: '127.0.0.1:0', tokens: {jwks: /k, issuer: i, audience: a}}";

    /// The example without `#` before keys that are off by default.
    fn with_everything() -> String {
        let text = include_str!("../../deploy/ca.example.yaml");
        let is_key = |line: &str| {
            line.trim_start().strip_prefix("# ").is_some_and(|rest| {
                let key: String = rest.trim_start().chars().take_while(char::is_ascii_alphanumeric).collect();
                !key.is_empty() && rest.trim_start()[key.len()..].starts_with(':')
            })
        };
        let lines = text.lines().map(|line| if is_key(line) { line.replacen("# ", "", 1) } else { line.to_owned() });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_has_every_key_and_the_defaults() {
        let text = include_str!("../../deploy/ca.example.yaml");
        let (example, least) = (parse(text).unwrap(), parse(&GOOD.replace("td,", "example.org,")).unwrap());
        assert_eq!((example.rules, example.renew_within), (least.rules, least.renew_within));
        assert_eq!((example.leaf_lifetime, example.streams_max), (least.leaf_lifetime, least.streams_max));
        assert_eq!((example.tokens.lifetime_max, example.tokens.pod_required), (DAY, true));
        let all = parse(&with_everything()).unwrap();
        assert!(all.export.is_some() && all.issuer_directory.is_some() && all.admin_address.is_some());
    }

    #[test]
    fn defaults_fill_what_is_not_said() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.leaf_lifetime, config.log_level.as_str()), (DAY, "info"));
        assert_eq!((config.renew_within, config.streams_max), (10 * MINUTE, 20_000));
        assert_eq!(config.admin_socket, Path::new("/x/admin.sock"));
        assert!(config.admin_address.is_none() && config.dns_names.is_empty() && config.export.is_none());
        assert!(config.tokens.pod_required && config.tokens.lifetime_max == DAY);
        let rules = config.rules;
        assert_eq!((rules.issuer_lifetime, rules.issuer_rotate_percent), (365 * 86400, 66));
        assert_eq!((rules.root_lifetime, rules.root_rotate_below), (3650 * 86400, 730 * 86400));
        assert_eq!((rules.absence_window, rules.stuck_after, rules.brought), (600, 3600, false));
    }

    #[test]
    fn what_tests_of_rotations_need_can_be_set() {
        let fast = GOOD.replace(
            "td,",
            "td, leafLifetime: 10s, issuer: {lifetime: 20s, directory: /i}, root: {lifetime: 40s, rotateBelow: 0s},\
             rotation: {absenceWindow: 0s}, follow: {streams: 3},",
        );
        let config = parse(&fast).unwrap();
        assert_eq!((config.leaf_lifetime.as_secs(), config.renew_within.as_secs(), config.streams_max), (10, 1, 3));
        let rules = config.rules;
        assert_eq!((rules.issuer_lifetime, rules.root_lifetime, rules.root_rotate_below), (20, 40, 0));
        assert!(rules.brought && rules.absence_window == 0);
    }

    #[test]
    fn mistakes_are_told_together() {
        let bad = GOOD
            .replace(
                "td,",
                "TD, leafLifetime: 9s, lisen: x, issuer: {lifetime: 1d, rotateAtPercent: 91},\
                 root: {lifetime: 1d, rotateBelow: 3651d}, follow: {streams: 0}, export: {endpoint: collector},",
            )
            .replace("issuer: i", "isuer: i");
        let text = parse(&bad).unwrap_err().to_string();
        for path in [
            "trustDomain",
            "leafLifetime",
            "lisen",
            "tokens.isuer",
            "tokens.issuer",
            "issuer.lifetime",
            "issuer.rotateAtPercent",
            "root.lifetime",
            "root.rotateBelow",
            "follow.streams",
            "export.endpoint",
        ] {
            assert!(text.contains(path), "{path}: {text}");
        }
    }
}
