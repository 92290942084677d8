//! The types a setting can have, and how each is written.
//!
//! Promises one text per type for what was expected, so that the same mistake reads the same for every key.

use crate::mistake::shown;
use serde_json::{Number, Value};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

/// One value before it has a type.
#[derive(Debug, Clone, Copy)]
pub enum Scalar<'a> {
    /// Text from an environment variable, which has no types of its own.
    Variable(&'a str),
    /// Text in the file.
    Text(&'a str),
    /// A number in the file.
    Number(&'a Number),
    /// `true` or `false` in the file.
    Bool(bool),
}

impl<'a> Scalar<'a> {
    /// The scalar that a YAML value is, or `None` for null, lists and maps.
    pub(crate) fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text)),
            Value::Number(number) => Some(Self::Number(number)),
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The text, if this is text or comes from a variable.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Variable(text) | Self::Text(text) => Some(text),
            Self::Number(_) | Self::Bool(_) => None,
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(text) | Self::Text(text) => write!(f, "\"{}\"", shown(text)),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// How a YAML value of any kind is shown in a message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        Value::String(_) | Value::Number(_) | Value::Bool(_) => {
            Scalar::of(value).map(|scalar| scalar.to_string()).unwrap_or_default()
        }
    }
}

/// A type that a setting can have.
pub trait Setting: Sized {
    /// What a reader is told to write, such as `a whole number from 0 to 65535`.
    fn expected() -> String;

    /// The value, or `None` when `scalar` is not what [`Setting::expected`] says.
    fn from_scalar(scalar: Scalar<'_>) -> Option<Self>;
}

impl Setting for String {
    fn expected() -> String {
        "text".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        scalar.text().map(str::to_owned)
    }
}

impl Setting for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Bool(value) => Some(value),
            Scalar::Variable(text) => text.parse().ok(),
            Scalar::Text(_) | Scalar::Number(_) => None,
        }
    }
}

/// A whole number; quoted numbers in the file are text and refused.
fn whole(scalar: Scalar<'_>) -> Option<u64> {
    match scalar {
        Scalar::Number(number) => number.as_u64(),
        Scalar::Variable(text) => text.parse().ok(),
        Scalar::Text(_) | Scalar::Bool(_) => None,
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn expected() -> String {
                format!("a whole number from 0 to {}", <$type>::MAX)
            }

            fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
                whole(scalar).and_then(|number| number.try_into().ok())
            }
        }
    )*};
}

whole_number!(u8, u16, u32, u64, usize);

/// For ports that must be named: 0 is refused.
impl Setting for NonZeroU16 {
    fn expected() -> String {
        "a whole number from 1 to 65535".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        u16::from_scalar(scalar).and_then(Self::new)
    }
}

/// Written as whole numbers with units, `250ms`, `10s`, `5m`, `1h30m`, `30d`; a number without a unit is refused.
impl Setting for Duration {
    fn expected() -> String {
        "a duration such as 250ms, 10s, 5m, 24h or 30d".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        let text = scalar.text()?;
        let mut rest = text;
        let mut total = Self::ZERO;
        while !rest.is_empty() {
            let (number, unit, after) = number_and_unit(rest)?;
            let milliseconds: u64 = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            total = total.checked_add(Self::from_millis(number.checked_mul(milliseconds)?))?;
            rest = after;
        }
        (!text.is_empty()).then_some(total)
    }
}

/// Splits `10s5ms` into 10, `s` and the rest, `5ms`.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, rest) = text.split_at(digits);
    let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    Some((number.parse().ok()?, &rest[..unit], &rest[unit..]))
}

/// A size in bytes, written `512`, `64KiB`, `1MiB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Setting for Bytes {
    fn expected() -> String {
        "a size such as 512, 64KiB, 1MiB or 2GiB".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        if let Some(bytes) = whole(scalar) {
            return Some(Self(bytes));
        }
        let (number, unit, rest) = number_and_unit(scalar.text()?)?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        rest.is_empty().then_some(Self(number.checked_mul(factor)?))
    }
}

impl Setting for SocketAddr {
    fn expected() -> String {
        "an address and port such as 127.0.0.1:15020 or [::1]:15020".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        scalar.text()?.parse().ok()
    }
}

impl Setting for IpAddr {
    fn expected() -> String {
        "an IP address such as 10.96.0.7 or fd00:96::7".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        scalar.text()?.parse().ok()
    }
}

/// The path as written; whether something is there is the reader's question.
impl Setting for PathBuf {
    fn expected() -> String {
        "the path of a file".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        scalar.text().filter(|text| !text.is_empty() && !text.contains('\0')).map(Self::from)
    }
}

/// A host name or IP address with a port, not yet resolved: `picket-ca.picket-system:15012`, `[fd00::1]:15012`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Setting for HostPort {
    fn expected() -> String {
        "host:port such as picket-ca.picket-system:15012 or [fd00::1]:15012".to_owned()
    }

    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        let text = scalar.text()?;
        if let Ok(address) = text.parse::<SocketAddr>() {
            return (address.port() != 0).then(|| Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':')?;
        let named =
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        let port = port.parse::<NonZeroU16>().ok()?.get();
        named.then(|| Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Setting + PartialEq + fmt::Debug>(text: &str, expected: Option<T>) {
        assert_eq!(T::from_scalar(Scalar::Text(text)), expected, "{text:?}");
    }

    #[test]
    fn durations() {
        check("250ms", Some(Duration::from_millis(250)));
        check("1h30m", Some(Duration::from_secs(5400)));
        check("24h", Some(Duration::from_secs(86_400)));
        check("30d", Some(Duration::from_secs(30 * 86_400)));
        for bad in ["", "10", "s", "10 s", "-1s", "1.5s", "1w", "99999999999999999999s", "18446744073709551615h"] {
            check::<Duration>(bad, None);
        }
    }

    #[test]
    fn sizes() {
        check("64KiB", Some(Bytes(65_536)));
        check("512B", Some(Bytes(512)));
        for bad in ["", "KiB", "1KB", "1KiB1B", "-1KiB", "18446744073709551615GiB"] {
            check::<Bytes>(bad, None);
        }
    }

    #[test]
    fn hosts_with_ports() {
        check("ca.picket-system:15012", Some(HostPort { host: "ca.picket-system".into(), port: 15012 }));
        check("[fd00::1]:443", Some(HostPort { host: "fd00::1".into(), port: 443 }));
        for bad in ["", "ca", "ca:", ":1", "ca:0", "ca:65536", "fd00::1:443", "http://ca:1", "10.0.0.1:0"] {
            check::<HostPort>(bad, None);
        }
    }

    #[test]
    fn numbers_in_the_file_are_not_text_but_variables_are_untyped() {
        check::<u16>("80", None);
        assert_eq!(u16::from_scalar(Scalar::Variable("80")), Some(80));
        assert_eq!(u16::from_scalar(Scalar::Variable("65536")), None);
        assert_eq!(bool::from_scalar(Scalar::Variable("true")), Some(true));
        check::<bool>("true", None);
    }
}
